"""How well speech is written down: error rates three ways, domain terms, failures, worst cases one can listen to.

- ``transcripts.py``  what was said beside what was written down
- ``normalise.py``    texts made comparable: raw, as Whisper's paper does, and with the marks of every script kept
- ``alignment.py``    which word of the one text stands for which of the other, by jiwer
- ``rates.py``        word and character error rates; ``bootstrap.py`` how far they would move with other utterances
- ``terms.py``        recall and precision of a list of domain terms, of one word or several
- ``failures.py``     hallucinations and repetitions, as this page defines them
- ``groups.py``       the rates by speaker, accent, length or any other column
- ``figures.py``      all of it as one value that JSON can hold
- ``report.py``       the page; ``players.py`` its sound; ``about.py`` the facts about the run
"""

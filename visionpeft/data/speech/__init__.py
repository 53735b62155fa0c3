"""Speech with its words: read from the usual layouts, checked, cut, split, varied, and made into log-mel features.

- ``utterances.py``  something said with its words, and a set of such
- ``settings.py``    what to read, and what to do with what cannot be used
- ``audio.py``       sound of any rate and number of channels; refusing what is none
- ``readers.py``     the table of layouts: tables, Common Voice, audiofolder; ``raw.py``: rows as they are written
- ``checks.py``      what is wrong with a row, told by file and line
- ``pieces.py``      long recordings cut at silences, where the times of their words are known

Sound is float32 [samples], 16,000 a second, one channel.
"""

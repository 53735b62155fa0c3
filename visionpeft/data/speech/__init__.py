"""Speech with its words: read from the usual layouts, checked, cut, split, varied, and made into log-mel features.

- ``utterances.py``  something said with its words, and a set of such
- ``settings.py``    what to read, what to do with what cannot be used, how to split
- ``audio.py``       sound of any rate and number of channels; refusing what is none
- ``readers.py``     the table of layouts: tables, Common Voice, audiofolder; ``raw.py``: rows as they are written
- ``checks.py``      what is wrong with a row, told by file and line
- ``pieces.py``      long recordings cut at silences, where the times of their words are known
- ``splits.py``      training, validation and test, given or made; ``leaks.py``: what stands in two of them
- ``augment.py``     speed, rooms, noise and loudness; ``masks.py``: SpecAugment on the device
- ``features.py``    log-mel features, computed or kept by what they are of
- ``lengths.py``     utterances of like length in one batch

Sound is float32 [samples], 16,000 a second, one channel.
"""

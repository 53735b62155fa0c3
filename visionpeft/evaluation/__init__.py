"""Scores of generated pictures, and the report of a run.

One question a file; a score of another kind of model comes as a file of its own beside these:

- ``encoders.py``     pictures and texts as unit vectors: the embedded tower, CLIP, DINOv2, ViT
- ``fidelity.py``     the scores themselves, as pure functions of such vectors
- ``settings.py``     what is painted to score a run, how often, and how far the model may drift
- ``calibration.py``  what the base model scores, measured once: the zero of every scale
- ``probe.py``        the scores of an adapter while it trains
- ``report_data.py``  a run's own files, read into values; ``report.py`` turns them into one page
- ``page.py``         what every report page is made of; ``charts.py`` and ``row_charts.py`` draw for all of them
- ``classification/`` scores of a classifier and its report
- ``strip.py``        the picture "before, after, the five pictures"
"""

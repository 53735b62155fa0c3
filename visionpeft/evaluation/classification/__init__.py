"""Scores of a classifier, and its report.

One question a file:

- ``predictions.py``  what a model said and what is true, as values; probabilities, and the yes-or-no questions in them
- ``settings.py``     what a report measures: operating point, resamples, subgroups
- ``kernels.py``      areas under curves and tables of counts, for many weightings of the examples at once
- ``operating.py``    the thresholds, chosen on validation
- ``statistics.py``   every metric by name, from the kernels
- ``bootstrap.py``    resamples of examples or patients, and the intervals that they give
- ``measure.py``      both together: every metric with its interval
- ``calibration.py``  whether probabilities mean what they say; temperature scaling
- ``figures.py``      all of it in one value that can be written as JSON; ``subgroups.py`` the same by column
- ``mistakes.py``     which errors to look at
- ``explain.py``      Grad-CAM and attention rollout; ``overlay.py`` lays them over a picture
- ``about.py``        what the report tells of the run; ``view.py`` and ``report.py`` make one page of it
"""

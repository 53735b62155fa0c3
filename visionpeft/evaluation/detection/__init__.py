"""How good a detector is: COCO's figures, a threshold, what was hit and missed, pictures of it, and the report.

- ``detections.py``  what a detector found on a picture, and a set of it beside what is there
- ``coco.py``        average precision and recall by pycocotools
- ``matching.py``    which detection hits which object, by COCO's greedy rule
- ``curves.py``      precision, recall and F1 over the confidence threshold, and how a threshold is chosen
- ``confusion.py``   which class is taken for which, or for nothing
- ``bootstrap.py``   how far mAP50 would move with other pictures
- ``figures.py``     all of it as one value that JSON can hold
- ``draw.py``        boxes on photographs; ``sheets.py`` many of them on one sheet
- ``writers.py``     detections as JSON, CSV and annotated pictures
- ``report.py``      the page; ``charts.py`` its curves; ``about.py`` the facts about the run
"""

"""Pictures with boxes: read from the usual formats, checked, split, augmented, and put together as batches.

- ``scenes.py``    a picture with its boxes, and a set of them
- ``settings.py``  what to read, and what to do with boxes that cannot be right
- ``readers.py``   the table of formats; one file each: ``coco.py``, ``yolo.py``, ``voc.py``
- ``checks.py``    what is wrong with a box, told by file and object
- ``splits.py``    training, validation and test, given or made; the same picture in two of them
- ``geometry.py``  pure functions on boxes
- ``augment.py``   flips, sizes, crops, mosaics and colours that keep boxes right
- ``batches.py``   pixels, masks and labels as the detectors of transformers take them

Boxes are float32 [n, 4] in pixels, (x_min, y_min, x_max, y_max): edges, so that a whole picture is (0, 0, width,
height).
"""

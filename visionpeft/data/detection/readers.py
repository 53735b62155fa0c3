"""The table of formats, and the one way to open pictures with boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visionpeft.data.detection.checks import checked_scenes
from visionpeft.data.detection.coco import read_coco
from visionpeft.data.detection.raw import RawScenes
from visionpeft.data.detection.scenes import LabelledScenes
from visionpeft.data.detection.settings import ScenesConfig
from visionpeft.data.detection.voc import read_voc
from visionpeft.data.detection.yolo import read_yolo
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

Reader = Callable[[Any, Progress], RawScenes]

READERS: dict[str, Reader] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
}
"""Format -> its reader: takes the settings of that format, returns objects as they are written."""


def open_scenes(config: ScenesConfig, progress: Progress = SILENT) -> LabelledScenes:
    """Return the pictures that ``config`` names, every box checked against its picture.

    Classes are in the order of ``config.labels``, or of the files (COCO: by id, YOLO: by number), or, where files
    only use names (VOC), of the alphabet.

    Raises:
        DataError: a file is missing or broken; a box cannot be right and ``on_bad`` is "error" (all of them are
            listed by file and object); there is not one object.
    """
    raw = READERS[config.source.format](config.source, progress)
    labels = config.labels or raw.labels or tuple(sorted({o.label for s in raw.scenes for o in s.objects if o.label}))
    scenes = checked_scenes(raw, labels, config.on_bad, progress)
    if not any(len(scene) for scene in scenes.scenes):
        raise DataError(f"{config.source.folder} holds {len(scenes)} pictures and not one object that can be used")
    return scenes

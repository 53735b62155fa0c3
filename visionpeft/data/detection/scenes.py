"""A picture with its boxes, and a set of such pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionpeft.data.pictures import read_picture
from visionpeft.errors import DataError

Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


def no_boxes() -> Boxes:
    """Return float32 [0, 4]."""
    return np.zeros((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is on it.

    Attributes:
        name: unique within its set: the picture's path from the set's folder.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        boxes: float32 [n, 4], (x_min, y_min, x_max, y_max) in pixels.
        labels: int64 [n], indices into the set's labels.
        split: "train", "validation" or "test" where the set says so.
        path: of the picture.
        crowd: bool [n], boxes around many objects or marked difficult: nothing is learned from them, and a detection
            there counts neither for nor against.
    """

    name: str
    width: int
    height: int
    boxes: Boxes
    labels: Labels
    split: str | None = None
    path: Path | None = None
    crowd: Flags = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        labels = np.asarray(self.labels, np.int64).reshape(-1)
        crowd = np.asarray(self.crowd, np.bool_).reshape(-1)
        if not len(crowd):
            crowd = np.zeros(len(boxes), np.bool_)
        if not len(boxes) == len(labels) == len(crowd):
            raise DataError(
                f"{self.name}: {len(boxes)} boxes, {len(labels)} labels and {len(crowd)} crowd flags: give one of "
                "each for every object"
            )
        for key, value in (("boxes", boxes), ("labels", labels), ("crowd", crowd)):
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class LabelledScenes:
    """Pictures with boxes of the classes ``labels``.

    Attributes:
        labels: names of the classes; a box's label is an index into them.
        scenes: one a picture.
        faults: what was wrong with boxes that were left out or cut when this set was read, one sentence each.
    """

    labels: tuple[str, ...]
    scenes: tuple[Scene, ...]
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> Image.Image:
        """Return the picture of a scene, 8-bit RGB, upright.

        Raises:
            DataError: it cannot be read, or is not of the size that its boxes were checked against.
        """
        scene = self.scenes[index]
        if scene.path is None:
            raise DataError(f"{scene.name} has no picture file: this set was made without one")
        image = read_picture(scene.path)
        if image.size != (scene.width, scene.height):
            raise DataError(
                f"{scene.path} is {image.width} by {image.height} pixels, its boxes are for {scene.width} by "
                f"{scene.height}: it was changed while the program ran"
            )
        return image

    def subset(self, indices: Sequence[int]) -> LabelledScenes:
        """Return the set of the scenes at ``indices``, in that order."""
        return LabelledScenes(self.labels, tuple(self.scenes[index] for index in indices))

    def counts(self) -> dict[str, int]:
        """Return how many boxes there are of each class, crowds left out."""
        found = Counter(int(label) for scene in self.scenes for label in scene.labels[~scene.crowd])
        return {name: found[index] for index, name in enumerate(self.labels)}

"""What a detector found on a picture, and a set of it beside what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visionpeft.data.detection.scenes import Boxes, Flags, Labels, Scene, no_boxes
from visionpeft.errors import DataError, did_you_mean

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found on one picture.

    Attributes:
        name: of the picture, as its scene has it.
        boxes: float32 [n, 4], (x_min, y_min, x_max, y_max) in pixels.
        scores: float32 [n], confidence, 0 to 1.
        labels: int64 [n], indices into the labels.
    """

    name: str
    boxes: Boxes
    scores: Scores
    labels: Labels

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        scores = np.asarray(self.scores, np.float32).reshape(-1)
        labels = np.asarray(self.labels, np.int64).reshape(-1)
        if not len(boxes) == len(scores) == len(labels):
            raise DataError(
                f"{self.name}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels: give one of each for "
                "every detection"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise DataError(f"{self.name}: a detection's box or score is no number: the model's weights may be damaged")
        for key, value in (("boxes", boxes), ("scores", scores), ("labels", labels)):
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Flags | NDArray[np.int64] | slice) -> Detections:
        """Return the detections at ``chosen``, in that order."""
        return Detections(self.name, self.boxes[chosen], self.scores[chosen], self.labels[chosen])

    def above(self, threshold: float) -> Detections:
        """Return those with a score of at least ``threshold``."""
        return self[self.scores >= np.float32(threshold)]

    def named(self, name: str) -> Detections:
        """Return the same as found on the picture ``name``."""
        return replace(self, name=name)


def nothing_found(name: str) -> Detections:
    """Return no detections on the picture ``name``."""
    return Detections(name, no_boxes(), np.zeros(0, np.float32), np.zeros(0, np.int64))


def joined(name: str, parts: Sequence[Detections]) -> Detections:
    """Return all detections of ``parts`` as those of one picture."""
    if not parts:
        return nothing_found(name)
    boxes = np.concatenate([part.boxes for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    return Detections(name, boxes, scores, np.concatenate([part.labels for part in parts]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is there and what was found, picture by picture.

    Attributes:
        labels: names of the classes.
        scenes: what is there.
        detections: what was found, in the order of ``scenes``.
    """

    labels: tuple[str, ...]
    scenes: tuple[Scene, ...]
    detections: tuple[Detections, ...]

    def __len__(self) -> int:
        return len(self.scenes)


def evaluation_of(labels: Sequence[str], scenes: Sequence[Scene], detections: Sequence[Detections]) -> Evaluation:
    """Return ``scenes`` and ``detections`` joined by the names of their pictures.

    Raises:
        DataError: there are no pictures, a name stands twice, a picture has no detections (an empty one is needed
            where nothing was found), detections are of a picture that is not there, or of an unknown class.
    """
    if not scenes:
        raise DataError("there are no pictures to evaluate on")
    for kind, names in (("scenes", [s.name for s in scenes]), ("detections", [d.name for d in detections])):
        name, count = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise DataError(f"the picture {name} stands {count} times in the {kind}: once is expected")
    found = {detection.name: detection for detection in detections}
    lacking = [scene.name for scene in scenes if scene.name not in found]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(scenes)} pictures have no detections, {lacking[0]} for one")
    strangers = sorted(set(found) - {scene.name for scene in scenes})
    if strangers:
        near = did_you_mean(strangers[0], [scene.name for scene in scenes])
        raise DataError(f"there are detections of {strangers[0]}, which is not among the pictures.{near}")
    for detection in detections:
        if len(detection) and not 0 <= detection.labels.min() <= detection.labels.max() < len(labels):
            raise DataError(f"{detection.name}: a detection's label is not among 0 to {len(labels) - 1}")
    return Evaluation(tuple(labels), tuple(scenes), tuple(found[scene.name] for scene in scenes))

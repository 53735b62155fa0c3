"""Which class is taken for which: objects and detections matched whatever their class, the rest is background."""

from __future__ import annotations

import numpy as np

from visionpeft.data.detection.geometry import intersections, ious
from visionpeft.data.detection.scenes import Flags, Labels, Scene
from visionpeft.evaluation.detection.detections import Detections, Evaluation
from visionpeft.evaluation.detection.matching import IOU


def confusion(evaluation: Evaluation, threshold: float, iou: float = IOU) -> Labels:
    """Return counts [classes + 1, classes + 1]: row what is there, column what was detected, the last is background.

    Detections of at least ``threshold`` and objects are paired from the largest IoU down, each once, down to ``iou``;
    of equal pairs those of the same class go first. An object that is left was missed (last column), a detection that
    is left is a false alarm (last row), unless half of it lies on a crowd.
    """
    classes = len(evaluation.labels)
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for scene, found in zip(evaluation.scenes, evaluation.detections, strict=True):
        kept = found.above(threshold)
        there = np.flatnonzero(~scene.crowd)
        rows, columns = _pairs(scene, kept, there, iou)
        np.add.at(table, (scene.labels[there[rows]], kept.labels[columns]), 1)
        missed = np.delete(scene.labels[there], rows)
        np.add.at(table, (missed, np.full(len(missed), classes)), 1)
        stray = np.setdiff1d(np.flatnonzero(~_on_crowds(scene, kept)), columns)
        np.add.at(table, (np.full(len(stray), classes), kept.labels[stray]), 1)
    return table


def _pairs(scene: Scene, found: Detections, there: Labels, iou: float) -> tuple[Labels, Labels]:
    """Indices into ``there`` and into ``found`` of what belongs together."""
    overlap = ious(scene.boxes[there], found.boxes)
    same = scene.labels[there][:, None] == found.labels[None, :]
    rows, columns = np.nonzero(overlap >= iou)
    order = np.lexsort((-found.scores[columns], ~same[rows, columns], -overlap[rows, columns]))
    left, right = set[int](), set[int]()
    pairs: list[tuple[int, int]] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in left and column not in right:
            left.add(row)
            right.add(column)
            pairs.append((row, column))
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _on_crowds(scene: Scene, found: Detections) -> Flags:
    if not scene.crowd.any():
        return np.zeros(len(found), np.bool_)
    own = intersections(found.boxes, found.boxes).diagonal()
    covered = intersections(found.boxes, scene.boxes[scene.crowd]).max(axis=1)
    return covered >= 0.5 * own

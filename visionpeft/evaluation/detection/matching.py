"""Which detection hits which object: COCO's greedy rule, highest score first, each object once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visionpeft.data.detection.geometry import areas, intersections, ious
from visionpeft.data.detection.scenes import Flags, Labels, Scene
from visionpeft.evaluation.detection.detections import Detections, Evaluation

IOU = 0.5
MOST_DETECTIONS = 100
"""Per picture and class, as COCO counts."""

_EPSILON = 1e-10


@dataclass(frozen=True, eq=False)
class PictureMatch:
    """What became of each detection and each object of one picture.

    Attributes:
        hits: int64 [detections], the index of the object that was hit; -1 for a false alarm, -2 for one that counts
            neither for nor against (on a crowd, or beyond the hundred best of its class).
        found: bool [objects], whether a detection hit it.
    """

    hits: Labels
    found: Flags


@dataclass(frozen=True, eq=False)
class Matches:
    """Every detection that counts, of all pictures, highest score first; of equals in the order of the pictures.

    Attributes:
        scores: float32 [n].
        labels: int64 [n].
        hit: bool [n], whether it hit an object.
        pictures: int64 [n], which picture it is of.
        objects: int64 [pictures, classes], how many objects there are to hit, crowds left out.
    """

    scores: NDArray[np.float32]
    labels: Labels
    hit: Flags
    pictures: Labels
    objects: Labels


def matched(scene: Scene, found: Detections, iou: float = IOU) -> PictureMatch:
    """Return what the detections of one picture hit, within each class.

    A detection takes the free object of its class with the largest IoU, at least ``iou``, and where there is none a
    crowd that covers it by that share.
    """
    hits = np.full(len(found), -2, np.int64)
    taken = np.zeros(len(scene), np.bool_)
    for label in np.unique(found.labels):
        there = np.flatnonzero(scene.labels == label)
        order = np.flatnonzero(found.labels == label)
        order = order[np.argsort(-found.scores[order], kind="stable")][:MOST_DETECTIONS]
        overlap = _overlaps(scene, found, order, there)
        for row, detection in zip(overlap, order, strict=True):
            hits[detection] = _taken(row, there, scene.crowd, taken, min(iou, 1 - _EPSILON))
            if hits[detection] >= 0:
                taken[hits[detection]] = True
    return PictureMatch(hits, taken)


def all_matches(evaluation: Evaluation, iou: float = IOU) -> Matches:
    """Return the detections of all pictures with what they hit."""
    classes = len(evaluation.labels)
    objects = np.zeros((len(evaluation), classes), np.int64)
    scores, labels, hit, pictures = [], [], [], []
    for picture, (scene, found) in enumerate(zip(evaluation.scenes, evaluation.detections, strict=True)):
        np.add.at(objects[picture], scene.labels[~scene.crowd], 1)
        hits = matched(scene, found, iou).hits
        counts = hits > -2
        scores.append(found.scores[counts])
        labels.append(found.labels[counts])
        hit.append(hits[counts] >= 0)
        pictures.append(np.full(int(counts.sum()), picture, np.int64))
    together = np.concatenate(scores)
    within = np.concatenate([np.argsort(np.argsort(-part, kind="stable")) for part in scores])
    where = np.concatenate(pictures)
    order = np.lexsort((within, where, -together))
    return Matches(together[order], np.concatenate(labels)[order], np.concatenate(hit)[order], where[order], objects)


def _overlaps(scene: Scene, found: Detections, order: Labels, there: Labels) -> NDArray[np.float64]:
    """IoU [detections, objects]; with a crowd, the share of the detection that it covers."""
    boxes, truth = found.boxes[order], scene.boxes[there]
    overlap = ious(boxes, truth)
    crowd = scene.crowd[there]
    if crowd.any():
        own = areas(boxes)[:, None]
        shared = intersections(boxes, truth[crowd])
        overlap[:, crowd] = np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)
    return overlap


def _taken(overlap: NDArray[np.float64], there: Labels, crowd: Flags, taken: Flags, iou: float) -> int:
    """The object that a detection takes, -1 where there is none, -2 where a crowd covers it."""
    free = np.where(taken[there] | crowd[there], -1.0, overlap)
    if len(free) and free.max() >= iou:
        return int(there[len(free) - 1 - int(free[::-1].argmax())])  # of equals the last, as COCO takes it
    return -2 if len(free) and np.where(crowd[there], overlap, -1.0).max() >= iou else -1

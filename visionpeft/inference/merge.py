"""Several detections of one object made one: suppression, weighted fusion, and parts of it seen by several tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from visionpeft.data.detection.geometry import areas, clipped, intersections, ious
from visionpeft.evaluation.detection.detections import Detections, joined

Indices = NDArray[np.int64]

_EDGE = 0.05
"""Share of a tile's side from its inner edge within which a box may go on beyond it: detectors are a little off."""

_WITHIN = 0.7
"""Share of a part that must lie within another tile's box of the same class for both to be of one object."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one tile saw: detections in the picture's pixels, and the tile (left, top, right, bottom)."""

    found: Detections
    window: tuple[int, int, int, int]


def kept_by_nms(found: Detections, iou: float) -> Detections:
    """Return ``found`` without those that overlap one of higher score and the same class by more than ``iou``."""
    order = np.argsort(-found.scores, kind="stable")
    found = found[order]
    alive = np.ones(len(found), np.bool_)
    for place in range(len(found)):
        if alive[place]:
            later = np.flatnonzero(alive[place + 1 :] & (found.labels[place + 1 :] == found.labels[place])) + place + 1
            alive[later] = ious(found.boxes[place : place + 1], found.boxes[later])[0] <= iou
    return found[alive]


def fused(found: Detections, iou: float, views: int = 1) -> Detections:
    """Return weighted box fusion of ``found`` (arXiv 1910.13302), highest score first.

    Highest score first, a detection joins the cluster of its class whose box so far it overlaps most, by more than
    ``iou``, or begins a new one. A cluster's box is the mean of its boxes weighted by their scores; its score is the
    mean score, times min(detections, views) / views.

    Args:
        found: of one picture, from ``views`` looks at it.
        iou: above which boxes are of one object.
        views: how often each object could have been seen.
    """
    order = np.argsort(-found.scores, kind="stable")
    boxes, scores = found.boxes[order].astype(np.float64), found.scores[order].astype(np.float64)
    labels = found.labels[order]
    sums, weights, counts = np.zeros((len(order), 4)), np.zeros(len(order)), np.zeros(len(order), np.int64)
    kinds = np.full(len(order), -1, np.int64)
    clusters = 0
    for box, score, label in zip(boxes, scores, labels, strict=True):
        means = sums[:clusters] / np.maximum(weights[:clusters], _LEAST)[:, None]
        overlap = np.where(kinds[:clusters] == label, ious(box[None], means)[0], -1.0)
        place = int(overlap.argmax()) if clusters and overlap.max() > iou else clusters
        clusters = max(clusters, place + 1)
        kinds[place] = label
        sums[place] += box * max(score, _LEAST)
        weights[place] += max(score, _LEAST)
        counts[place] += 1
    kept = slice(clusters)
    score = weights[kept] / np.maximum(counts[kept], 1) * np.minimum(counts[kept], views) / views
    means = (sums[kept] / weights[kept, None]).astype(np.float32)
    result = Detections(found.name, means, score.astype(np.float32), kinds[kept])
    return result[np.argsort(-score, kind="stable")]


_LEAST = 1e-12
"""Weight of a detection of score 0: it has a box all the same."""


def whole_objects(name: str, pieces: Sequence[Piece], size: tuple[int, int], iou: float) -> Detections:
    """Return what tiles saw of one picture, with objects that tiles cut put together from their parts.

    A box that ends near an inner edge of its tile may go on beyond it. Two detections of one class from different
    tiles are of one object where within the overlap of the tiles they are the same box, by ``iou`` at least, or
    where most of a cut one lies within the other: a sliver of an object is hard to measure. What agrees most goes
    first, and an object takes at most one detection of each tile. If a tile saw it whole, the parts go; else its
    box is around all parts. Detections that no tile cut are returned as they are, doubles too.

    Args:
        name: of the picture.
        pieces: one a tile.
        size: (width, height) of the picture.
        iou: from which boxes are the same.
    """
    found = joined(name, [piece.found for piece in pieces])
    tiles = np.repeat(np.arange(len(pieces)), [len(piece.found) for piece in pieces])
    windows = np.array([piece.window for piece in pieces], np.float64).reshape(-1, 4)
    cut = _is_cut(found, windows[tiles], size)
    groups = _grouped(_agreeing(found, windows, tiles, cut, iou), tiles)
    boxes, scores = found.boxes.copy(), found.scores.copy()
    kept = np.ones(len(found), np.bool_)
    for group in groups:
        whole = group[~cut[group]]
        if len(whole):
            kept[group[cut[group]]] = False
            continue
        first = group[found.scores[group].argmax()]
        kept[group] = group == first
        boxes[first] = [*found.boxes[group, :2].min(axis=0), *found.boxes[group, 2:].max(axis=0)]
    return Detections(name, boxes, scores, found.labels)[kept]


def _is_cut(found: Detections, windows: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether a box ends at an edge of its tile [n, 4] that is none of the picture."""
    near = _EDGE * (windows[:, 2:] - windows[:, :2])
    low = (found.boxes[:, :2] <= windows[:, :2] + near) & (windows[:, :2] > 0)
    high = (found.boxes[:, 2:] >= windows[:, 2:] - near) & (windows[:, 2:] < np.array(size))
    return np.any(low | high, axis=1, keepdims=True)[:, 0]


def _agreeing(
    found: Detections, windows: NDArray[np.float64], tiles: Indices, cut: NDArray[np.bool_], iou: float
) -> list[tuple[int, int]]:
    """Pairs of detections that are of one object as far as their tiles can tell, those that agree most first."""
    pairs: list[tuple[float, int, int]] = []
    members = [np.flatnonzero(tiles == tile) for tile in range(len(windows))]
    for first, second in combinations(range(len(windows)), 2):
        window = _shared(windows[first], windows[second])
        if window is None:
            continue
        left, right = members[first], members[second]
        value = _agreement(
            clipped(found.boxes[left], window), clipped(found.boxes[right], window), cut[left], cut[right], iou
        )
        value[(found.labels[left][:, None] != found.labels[right]) | ~(cut[left][:, None] | cut[right])] = 0
        rows, columns = np.nonzero(value >= iou)
        pairs += zip(value[rows, columns].tolist(), left[rows].tolist(), right[columns].tolist(), strict=True)
    return [(first, second) for _, first, second in sorted(pairs, key=lambda pair: -pair[0])]


def _shared(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    """What two tiles both see; None where that is nothing."""
    left, top = np.maximum(first[:2], second[:2]).tolist()
    right, bottom = np.minimum(first[2:], second[2:]).tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None


def _agreement(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    first_cut: NDArray[np.bool_],
    second_cut: NDArray[np.bool_],
    iou: float,
) -> NDArray[np.float64]:
    """IoU [n, m] of what two tiles see of boxes [n, 4] and [m, 4]; ``iou`` at least where a cut one lies within."""
    common = intersections(first, second)
    within = first_cut[:, None] & (common >= _WITHIN * areas(first)[:, None])
    within |= second_cut & (common >= _WITHIN * areas(second))
    value = ious(first, second)
    return np.where(within & (common > 0), np.maximum(value, iou), value)


def _grouped(pairs: Sequence[tuple[int, int]], tiles: Indices) -> list[Indices]:
    """Detections of one object each, joined by ``pairs`` in their order; at most one of a tile."""
    group = np.arange(len(tiles))
    for left, right in pairs:
        first, second = group[left], group[right]
        if first != second and not np.isin(tiles[group == first], tiles[group == second]).any():
            group[group == second] = first
    numbers, counts = np.unique(group, return_counts=True)
    return [np.flatnonzero(group == number) for number in numbers[counts > 1]]

"""How far mAP50 would move with other pictures of the same kind: the bootstrap over pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visionpeft.evaluation.detection.curves import RECALLS
from visionpeft.evaluation.detection.matching import Matches

Floats = NDArray[np.float64]
_CELLS = 4_000_000
"""Numbers held at once."""


def weighted_ap50(matches: Matches, label: int, weights: NDArray[np.int64]) -> Floats:
    """Return COCO's AP of a class [r] with picture i counted ``weights[:, i]`` times; NaN where no object is left.

    With a picture drawn w times its detections stand w times in a row. Only the last of equals can be the highest
    precision at its recall, so that counting each w times gives what copying the picture would.

    Args:
        matches: at the IoU that counts.
        label: the class.
        weights: [r, pictures], how often each picture is there in each of r resamples.
    """
    chosen = matches.labels == label
    pictures, hit = matches.pictures[chosen], matches.hit[chosen]
    found: list[float] = []
    rows = max(1, _CELLS // max(len(pictures), 1))
    for start in range(0, len(weights), rows):
        part = weights[start : start + rows]
        counts = part[:, pictures]
        hits, seen = np.cumsum(counts * hit, axis=1), np.cumsum(counts, axis=1)
        objects = part @ matches.objects[:, label]
        precision = hits / np.maximum(seen, 1)
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found += [_read(h, p, n) for h, p, n in zip(hits, highest, objects.tolist(), strict=True)]
    return np.array(found, np.float64)


def _read(hits: NDArray[np.int64], highest: Floats, objects: int) -> float:
    """Mean precision at COCO's recalls of one resample."""
    if not objects:
        return np.nan
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    return float(np.append(highest, 0.0)[places].mean())


def map50_interval(
    matches: Matches, *, resamples: int, seed: int, level: float = 0.95
) -> tuple[tuple[float, float] | None, dict[int, tuple[float, float] | None]]:
    """Return the percentile interval of mAP50 over resamples of the pictures, and that of each class.

    A resample without an object of a class leaves the class out of its mean. None where there is nothing to resample:
    fewer than two pictures, or no objects.

    Args:
        matches: at IoU 0.5.
        resamples: how many; a few hundred are enough for two decimals.
        seed: of the draw.
        level: share of the resamples that lie within.
    """
    pictures, classes = matches.objects.shape
    rng = np.random.default_rng([seed, resamples])
    weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    by_class = np.stack([weighted_ap50(matches, label, weights) for label in range(classes)])
    there = np.isfinite(by_class)
    counted = there.sum(axis=0)
    means = np.where(there, by_class, 0.0).sum(axis=0)[counted > 0] / counted[counted > 0]
    enough = pictures > 1
    own = {label: _interval(by_class[label][there[label]], level) if enough else None for label in range(classes)}
    return (_interval(means, level) if enough else None), own


def _interval(values: Floats, level: float) -> tuple[float, float] | None:
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

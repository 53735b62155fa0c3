"""Pure functions on boxes [n, 4] of corners (x_min, y_min, x_max, y_max) in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionpeft.data.detection.scenes import Boxes

Floats = NDArray[np.float64]


def areas(boxes: NDArray[Any]) -> Floats:
    """Return float64 [n], square pixels; 0 for boxes that end before they begin."""
    sides = np.clip(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0, None)
    return sides[:, 0] * sides[:, 1]


def intersections(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Return the area that every box of ``first`` [n, 4] shares with every one of ``second`` [m, 4]: [n, m]."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return sides[..., 0] * sides[..., 1]


def ious(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """Return intersection over union of every box of ``first`` [n, 4] and ``second`` [m, 4]: float64 [n, m], 0 to 1."""
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def clipped(boxes: NDArray[Any], window: tuple[float, float, float, float]) -> NDArray[Any]:
    """Return the parts of ``boxes`` within ``window`` (x_min, y_min, x_max, y_max)."""
    left, top, right, bottom = window
    return boxes.clip([left, top, left, top], [right, bottom, right, bottom])


def visible_shares(boxes: NDArray[Any], window: tuple[float, float, float, float]) -> Floats:
    """Return which share of each box lies within ``window``: float64 [n], 0 to 1."""
    whole = areas(boxes)
    return np.divide(areas(clipped(boxes, window)), whole, out=np.zeros_like(whole), where=whole > 0)


def mirrored(boxes: Boxes, extent: float, axis: int) -> Boxes:
    """Return boxes of a picture turned left to right (``axis`` 0) or upside down (1), ``extent`` pixels long there."""
    turned = boxes.copy()
    turned[:, axis], turned[:, axis + 2] = extent - boxes[:, axis + 2], extent - boxes[:, axis]
    return turned


def centred(boxes: NDArray[Any], width: float, height: float) -> Boxes:
    """Return (centre x, centre y, width, height) as shares of a picture of ``width`` × ``height``: what DETR learns."""
    shares = boxes / np.array([width, height, width, height], np.float64)
    centre, side = (shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]
    return np.concatenate([centre, side], axis=1).astype(np.float32)


def cornered(boxes: NDArray[Any], width: float, height: float) -> Boxes:
    """Return corners in pixels of boxes (centre x, centre y, width, height) in shares: the way back."""
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return (corners * np.array([width, height, width, height])).astype(np.float32)

"""From a picture of any size to the pixels a model trains on: functions of (seed, epoch, index), without a state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Crop = Literal["none", "center", "random"]


@dataclass(frozen=True)
class View:
    """What is seen of a picture: scaled by the larger of the two ratios, cut to ``width`` × ``height``, maybe mirrored.

    Attributes:
        width: in pixels.
        height: in pixels.
        left: where the cut lies within what is left over horizontally, 0 (left) to 1 (right).
        top: the same vertically, 0 (top) to 1 (bottom).
        flip: whether left and right are exchanged.
    """

    width: int
    height: int
    left: float = 0.5
    top: float = 0.5
    flip: bool = False


def bucket(width: int, height: int, resolution: int, unit: int) -> tuple[int, int]:
    """Return the (width, height) in multiples of ``unit`` that suits the picture's shape best.

    The area is at most resolution². Least counts |log(ratio / picture's ratio)| + ½ log(resolution² / area): as little
    as possible is cut off, and few pixels are given away for it. Of equals the first in (width, height) is taken.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        resolution: side of the square with the largest area, in pixels, at least ``unit``.
        unit: what the model's sides must be multiples of, in pixels.
    """
    most = (resolution // unit) ** 2
    wanted = math.log(width / height)

    def cost(side: tuple[int, int]) -> float:
        return abs(math.log(side[0] / side[1]) - wanted) + math.log(most / math.prod(side)) / 2

    sides = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    columns, rows = min(sides, key=lambda side: (round(cost(side), 9), side))
    return columns * unit, rows * unit


def view_of(
    size: tuple[int, int], *, resolution: int, unit: int, crop: Crop, flip: bool, at: tuple[int, int, int]
) -> View:
    """Return what is seen of a picture of ``size`` (width, height) at its draw ``at`` = (seed, epoch, index).

    Args:
        size: width and height of the picture, in pixels.
        resolution: side of the training square, in pixels, a multiple of ``unit``.
        unit: what the sides must be multiples of, in pixels.
        crop: "none" keeps the whole picture in its own shape (see :func:`bucket`), "center" and "random" cut a square.
        flip: whether half of the draws are mirrored.
        at: seed, epoch and index: all that chance depends on.
    """
    chance = np.random.Generator(np.random.PCG64([*at, _STREAM])).random(3)
    mirrored = bool(flip and chance[0] < 0.5)
    if crop == "none":
        width, height = bucket(*size, resolution, unit)
        return View(width, height, flip=mirrored)
    if crop == "center":
        return View(resolution, resolution, flip=mirrored)
    return View(resolution, resolution, float(chance[1]), float(chance[2]), mirrored)


_STREAM = 0x7669_6577
"""Sets these draws apart from the sample order's, which are seeded by (seed, epoch) too."""


def seen(image: Image.Image, view: View) -> Image.Image:
    """Return the part of ``image`` that ``view`` shows, by one Lanczos resampling from the original pixels."""
    scale = max(view.width / image.width, view.height / image.height)
    width, height = view.width / scale, view.height / scale
    left, top = (image.width - width) * view.left, (image.height - height) * view.top
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    part = image.resize((view.width, view.height), Image.Resampling.LANCZOS, box=box)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else part


def covering(image: Image.Image, resolution: int) -> Image.Image:
    """Return ``image`` scaled down until its shorter side is ``resolution``; a smaller one as it is."""
    scale = resolution / min(image.size)
    if scale >= 1:
        return image
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.LANCZOS)


def pixels(image: Image.Image) -> Tensor:
    """Return an RGB picture as [3, height, width] float32, from -1 (black) to 1 (white)."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1).div(127.5).sub(1.0)

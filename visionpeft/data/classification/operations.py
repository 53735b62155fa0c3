"""The operations of RandAugment (Cubuk et al. 2019, arXiv:1909.13719): functions of a picture and a strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, ImageEnhance, ImageOps

Colour = tuple[int, int, int]
Operate = Callable[[Image.Image, float, Colour], Image.Image]


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        apply: takes an RGB picture, a strength (0 does nothing, 1 is the strongest), and the colour of what comes in
            from outside; returns a picture of the same size.
        signed: whether half of the draws go the other way, with a negative strength.
    """

    apply: Operate
    signed: bool


def moved(
    image: Image.Image, matrix: tuple[float, float, float, float], shift: tuple[float, float], fill: Colour
) -> Image.Image:
    """Return the picture seen through ``(x, y) -> matrix · (x, y) + shift`` about its centre, in pixels, bicubic."""
    a, b, d, e = matrix
    x, y = image.width / 2, image.height / 2
    entries = (a, b, x - a * x - b * y + shift[0], d, e, y - d * x - e * y + shift[1])
    return image.transform(
        image.size, Image.Transform.AFFINE, entries, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


def rotated(image: Image.Image, degrees: float, fill: Colour) -> Image.Image:
    """Return the picture turned counter-clockwise about its centre, at its own size."""
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=fill)


class _Enhancer(Protocol):
    def enhance(self, factor: float) -> Image.Image: ...


def _enhanced(kind: Callable[[Image.Image], _Enhancer]) -> Operate:
    return lambda image, strength, fill: kind(image).enhance(1 + 0.9 * strength)


def _shear(image: Image.Image, slope_x: float, slope_y: float, fill: Colour) -> Image.Image:
    return moved(image, (1, slope_x, slope_y, 1), (0, 0), fill)


def _translate(image: Image.Image, share_x: float, share_y: float, fill: Colour) -> Image.Image:
    return moved(image, (1, 0, 0, 1), (share_x * image.width, share_y * image.height), fill)


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda image, strength, fill: image.copy(), False),
    "autocontrast": Operation(lambda image, strength, fill: ImageOps.autocontrast(image), False),
    "equalize": Operation(lambda image, strength, fill: ImageOps.equalize(image), False),
    "rotate": Operation(lambda image, strength, fill: rotated(image, 30 * strength, fill), True),
    "solarize": Operation(lambda image, strength, fill: ImageOps.solarize(image, round(256 * (1 - strength))), False),
    "color": Operation(_enhanced(ImageEnhance.Color), True),
    "posterize": Operation(lambda image, strength, fill: ImageOps.posterize(image, 8 - round(4 * strength)), False),
    "contrast": Operation(_enhanced(ImageEnhance.Contrast), True),
    "brightness": Operation(_enhanced(ImageEnhance.Brightness), True),
    "sharpness": Operation(_enhanced(ImageEnhance.Sharpness), True),
    "shear-x": Operation(lambda image, strength, fill: _shear(image, 0.3 * strength, 0, fill), True),
    "shear-y": Operation(lambda image, strength, fill: _shear(image, 0, 0.3 * strength, fill), True),
    "translate-x": Operation(lambda image, strength, fill: _translate(image, 0.45 * strength, 0, fill), True),
    "translate-y": Operation(lambda image, strength, fill: _translate(image, 0, 0.45 * strength, fill), True),
}
"""The paper's 14 operations with the ranges of AutoAugment: 30°, slopes of 0.3, 45 % of the side, factors of 1 ± 0.9,
4 bits of a colour, any solarization. ``autocontrast``, ``equalize`` and ``identity`` have no strength."""

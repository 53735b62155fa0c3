"""A heat map over the picture that it is of, and the picture as the model saw it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Heat = npt.NDArray[np.floating]

_RAMP = np.array([(38, 22, 96), (122, 28, 121), (205, 60, 80), (245, 130, 45), (252, 220, 110)], dtype=np.float64)
"""From little to much, as sRGB: dark violet, red, orange, pale yellow; its lightness only rises."""


def overlay(picture: Image.Image, heat: Heat, *, strength: float = 0.7) -> Image.Image:
    """Lay a heat map over a picture: more heat, more colour; where there is none the picture is as it was, in grey.

    Args:
        picture: of any size; its own colours become shades of grey, so that every colour is heat.
        heat: [h, w], 0 and above, of the whole picture; its largest value is full heat.
        strength: how much of the picture the greatest heat covers, 0 to 1.

    Returns:
        RGB, as large as the picture.
    """
    highest = float(np.max(heat))
    scaled = np.asarray(heat, dtype=np.float32) / highest if highest > 0 else np.zeros(heat.shape, dtype=np.float32)
    large = Image.fromarray(scaled, mode="F").resize(picture.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(large, dtype=np.float64), 0.0, 1.0)[..., None]
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    cover = strength * share
    return Image.fromarray(np.round((1 - cover) * grey + cover * _coloured(share[..., 0])).astype(np.uint8))


def seen(pixels: npt.NDArray[np.floating], mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """Return pictures as the model saw them, cut and resized: a heat map fits these exactly.

    Args:
        pixels: [N, 3, H, W], normalised.
        mean: of the normalisation, RGB in [0, 1].
        std: likewise.
    """
    shades = np.moveaxis(np.asarray(pixels, dtype=np.float64), 1, -1) * np.asarray(std) + np.asarray(mean)
    return [Image.fromarray(picture) for picture in np.round(np.clip(shades, 0.0, 1.0) * 255).astype(np.uint8)]


def _coloured(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    steps = np.linspace(0.0, 1.0, len(_RAMP))
    return np.stack([np.interp(share, steps, _RAMP[:, channel]) for channel in range(3)], axis=-1)

"""Pictures changed by chance: a function of (seed, epoch, index), so that no generator's state is ever saved."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log, sqrt
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field, field_validator, model_validator

from visionpeft.data.classification.operations import OPERATIONS, Colour, rotated
from visionpeft.data.classification.settings import Settings
from visionpeft.errors import did_you_mean

Factor = Annotated[float, Field(ge=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Chance = np.random.Generator

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "natural": {
        "flip_horizontal": True, "crop": (0.5, 1.0), "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
        "operations": 2,
    },
    "medical": {
        "rotate": 10.0, "crop": (0.85, 1.0), "ratio": (0.95, 1 / 0.95), "brightness": 0.1, "contrast": 0.1,
        "magnitude": 3.0,
        "allowed": ("identity", "rotate", "contrast", "brightness", "sharpness", "translate-x", "translate-y"),
    },
}  # fmt: skip
"""What a preset sets; a setting that is given beside it wins. Medical: no colours are changed, nothing is mirrored (as
left and right matter; allow flips where they do not), and RandAugment, where asked for, keeps to what is harmless."""


class AugmentConfig(Settings):
    """How training pictures are changed by chance, in this order: cut, mirrored, turned, coloured, RandAugment."""

    preset: Literal["none", "natural", "medical"] = Field(
        default="none", description="Where the other settings begin; medical is small and keeps colours and sides."
    )
    crop: tuple[float, float] = Field(
        default=(1.0, 1.0), description="Least and largest share of the area that is cut out and scaled up."
    )
    ratio: tuple[float, float] = Field(
        default=(3 / 4, 4 / 3), description="How far a cut changes width : height; only with crop below 1."
    )
    flip_horizontal: bool = Field(default=False, description="Mirror half of the draws left to right.")
    flip_vertical: bool = Field(default=False, description="Mirror half of the draws top to bottom.")
    rotate: float = Field(default=0.0, ge=0, le=180, description="Turn by up to so many degrees either way.")
    brightness: Factor = Field(default=0.0, description="Factor of 1 ± so much.")
    contrast: Factor = Field(default=0.0, description="Factor of 1 ± so much.")
    saturation: Factor = Field(default=0.0, description="Factor of 1 ± so much.")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="Turn of the colour wheel by up to so much of a round.")
    operations: int = Field(default=0, ge=0, le=10, description="RandAugment: operations a picture (arXiv 1909.13719).")
    magnitude: float = Field(default=5.0, ge=0, le=10, description="RandAugment: their strength, 10 is the strongest.")
    allowed: tuple[str, ...] = Field(
        default=tuple(OPERATIONS), min_length=1, description="RandAugment: the operations that are drawn from."
    )
    fill: tuple[Byte, Byte, Byte] | None = Field(
        default=None, description="RGB of what comes in from outside; null: the mean of the picture's own edge."
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_with_the_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "none") if isinstance(values, Mapping) else None
        return {**PRESETS[preset], **values} if isinstance(preset, str) and preset in PRESETS else values

    @field_validator("allowed")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = next((name for name in names if name not in OPERATIONS), None)
        if unknown is not None:
            raise ValueError(f"'{unknown}' is none of {', '.join(OPERATIONS)}.{did_you_mean(unknown, OPERATIONS)}")
        return names

    @field_validator("crop", "ratio")
    @classmethod
    def _are_ranges(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError(f"a range is two numbers above 0, the smaller first, not {list(ends)}")
        return ends

    @field_validator("crop")
    @classmethod
    def _is_a_share(cls, shares: tuple[float, float]) -> tuple[float, float]:
        if shares[1] > 1:
            raise ValueError(f"a share of the area is at most 1, not {shares[1]:g}")
        return shares


def augmented(image: Image.Image, config: AugmentConfig, *, at: tuple[int, int, int]) -> Image.Image:
    """Return the picture changed by chance, at its own size.

    Args:
        image: 8-bit RGB.
        config: what may be changed, and how far.
        at: seed, epoch and index of the draw, each at least 0: all that chance depends on. With balanced draws take
            the draw's index and not the picture's, so that a picture that comes twice is changed in two ways.
    """
    chance = np.random.Generator(np.random.PCG64([*at, _STREAM]))
    fill = config.fill or _edge_colour(image)
    share, *way = chance.random(5).tolist()
    image = _cut(image, config, share, (way[0], way[1]), way[2])
    across, down, turn = chance.random(3).tolist()
    if config.flip_horizontal and across < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.flip_vertical and down < 0.5:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if config.rotate:
        image = rotated(image, config.rotate * (2 * turn - 1), fill)
    return _randomly_operated(_coloured(image, config, chance.random(4).tolist()), config, fill, chance)


_STREAM = 0x6175_676D
"""Sets these draws apart from others that are seeded by (seed, epoch, index) too."""


def _edge_colour(image: Image.Image) -> Colour:
    """The mean of the outermost pixels: what comes in from outside then looks like background, dark or bright."""
    values = np.asarray(image)
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    red, green, blue = np.rint(edge.mean(axis=0)).astype(int).tolist()
    return red, green, blue


def _cut(
    image: Image.Image, config: AugmentConfig, share: float, place: tuple[float, float], shape: float
) -> Image.Image:
    """A part of the picture scaled to its size: area and place uniform, the ratio uniform in its logarithm."""
    if config.crop == (1.0, 1.0):
        return image
    area = config.crop[0] + (config.crop[1] - config.crop[0]) * share
    low, high = map(log, config.ratio)
    ratio = exp(low + (high - low) * shape)
    width, height = image.width * min(sqrt(area * ratio), 1), image.height * min(sqrt(area / ratio), 1)
    left, top = (image.width - width) * place[0], (image.height - height) * place[1]
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _coloured(image: Image.Image, config: AugmentConfig, draws: list[float]) -> Image.Image:
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    ranges = (config.brightness, config.contrast, config.saturation)
    for kind, reach, draw in zip(kinds, ranges, draws, strict=False):
        if reach:
            image = kind(image).enhance(1 + reach * (2 * draw - 1))
    return _hue_turned(image, config.hue * (2 * draws[3] - 1)) if config.hue else image


def _hue_turned(image: Image.Image, turn: float) -> Image.Image:
    """The colour wheel turned by ``turn`` of a round."""
    values = np.array(image.convert("HSV"))
    values[..., 0] = (values[..., 0].astype(np.int64) + round(turn * 256)) % 256
    return Image.fromarray(values, "HSV").convert("RGB")


def _randomly_operated(image: Image.Image, config: AugmentConfig, fill: Colour, chance: Chance) -> Image.Image:
    """RandAugment: ``operations`` draws of the allowed ones, each as likely, with one strength."""
    for pick, side in chance.random((config.operations, 2)).tolist():
        operation = OPERATIONS[config.allowed[int(pick * len(config.allowed))]]
        strength = config.magnitude / 10
        image = operation.apply(image, -strength if operation.signed and side < 0.5 else strength, fill)
    return image

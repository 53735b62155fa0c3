"""Flips, sizes, crops, mosaics and colours that keep boxes right: pure functions of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from visionpeft.data.detection.geometry import clipped, mirrored, visible_shares
from visionpeft.data.detection.scenes import Boxes, Flags, LabelledScenes, Labels
from visionpeft.data.detection.settings import Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Side = Annotated[int, Field(ge=16, le=8192)]
Window = tuple[int, int, int, int]

_STREAM = 0x626F_7865
"""Sets these draws apart from the sample order's, which are seeded by (seed, epoch) too."""

_TRIES = 10
_SMALLEST = 1.0
"""Pixels of the shorter side under which nothing can be seen of an object."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture with its boxes on the way to a batch.

    Attributes:
        image: 8-bit RGB.
        boxes: float32 [n, 4], corners in pixels of ``image``.
        labels: int64 [n].
    """

    image: Image.Image
    boxes: Boxes
    labels: Labels


class SceneSize(Settings):
    """How large pictures are for the model."""

    fit: Literal["shortest", "stretch"] = Field(
        default="shortest",
        description="shortest: the shape is kept, the shortest side is set (DETR); stretch: one shape (RT-DETR).",
    )
    side: Side = Field(default=800, description="The shortest side, or the height, in pixels; always in evaluation.")
    sides: tuple[Side, ...] = Field(
        default=(), description="Sides that training draws from (multi-scale); empty: always side."
    )
    longest: Side = Field(default=1333, description="With shortest: the longest side is at most this.")
    canvas: tuple[Side, Side] | None = Field(
        default=None,
        description="Height and width that nothing is larger than; stretched pictures have its shape. Null: a square.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SceneSize:
        largest = max(self.side, *self.sides, 0)
        if self.fit == "shortest" and largest > self.longest:
            raise ValueError(f"the side {largest} is larger than longest {self.longest}: raise longest")
        return self


class SceneAugment(Settings):
    """What chance does to training pictures; 0 is never."""

    flip_horizontal: Share = Field(default=0.5, description="Share of draws with left and right exchanged.")
    flip_vertical: Share = Field(default=0.0, description="Share of draws turned upside down.")
    crop: Share = Field(default=0.0, description="Share of draws that show a part of the picture.")
    crop_area: tuple[Share, Share] = Field(
        default=(0.3, 1.0), description="Least and most of the picture's area that a crop shows."
    )
    min_visible: Share = Field(
        default=0.4, description="An object that is seen by less than this share after a crop is not there any more."
    )
    mosaic: Share = Field(default=0.0, description="Share of draws put together from four pictures.")
    brightness: Share = Field(default=0.0, description="Light is multiplied by 1 minus to 1 plus this.")
    contrast: Share = Field(default=0.0, description="Contrast is multiplied by 1 minus to 1 plus this.")
    saturation: Share = Field(default=0.0, description="Colourfulness is multiplied by 1 minus to 1 plus this.")
    hue: float = Field(default=0.0, ge=0.0, le=0.5, description="Hue is turned by at most this share of the circle.")

    @model_validator(mode="after")
    def _least_first(self) -> SceneAugment:
        if not 0 < self.crop_area[0] <= self.crop_area[1]:
            raise ValueError(f"crop_area {list(self.crop_area)}: expected the least area, over 0, and then the most")
        return self


def sample_of(scenes: LabelledScenes, index: int) -> Sample:
    """Return a scene as it is, without its crowds.

    Raises:
        DataError: its picture cannot be read.
    """
    scene = scenes.scenes[index]
    return Sample(scenes.image(index), scene.boxes[~scene.crowd], scene.labels[~scene.crowd])


def augmented(
    scenes: LabelledScenes, index: int, config: SceneAugment, size: SceneSize, *, at: tuple[int, int]
) -> Sample:
    """Return the training sample of a scene at its draw.

    Args:
        scenes: the set; a mosaic takes three more pictures from it.
        index: which scene, 0 to n - 1.
        config: what chance may do.
        size: how large the result is.
        at: (seed, epoch); with ``index``, all that chance depends on.

    Raises:
        DataError: a picture cannot be read.
    """
    rng = np.random.Generator(np.random.PCG64([*at, index, _STREAM]))
    chance = rng.random(4)
    sample = sample_of(scenes, index)
    if chance[0] < config.mosaic:
        others = [sample_of(scenes, int(other)) for other in rng.integers(len(scenes), size=3)]
        sample = mosaic([sample, *others], config.min_visible, rng)
    if chance[1] < config.crop:
        sample = cropped(sample, crop_window(sample, config, rng), config.min_visible)
    for axis, share in enumerate((config.flip_horizontal, config.flip_vertical)):
        sample = flipped(sample, axis) if chance[2 + axis] < share else sample
    sides = size.sides or (size.side,)
    sample = sized(sample, size, int(sides[int(rng.integers(len(sides)))]))
    return replace(sample, image=jittered(sample.image, config, rng))


def prepared(scenes: LabelledScenes, index: int, size: SceneSize) -> Sample:
    """Return the sample of a scene for evaluation: sized, and nothing else.

    Raises:
        DataError: its picture cannot be read.
    """
    return sized(sample_of(scenes, index), size, size.side)


def flipped(sample: Sample, axis: int) -> Sample:
    """Return ``sample`` with left and right exchanged (``axis`` 0), or upside down (1)."""
    way = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)[axis]
    boxes = mirrored(sample.boxes, sample.image.size[axis], axis)
    return replace(sample, image=sample.image.transpose(way), boxes=boxes)


def size_for(width: int, height: int, size: SceneSize, side: int) -> tuple[int, int]:
    """Return the (width, height) that a picture of ``width`` × ``height`` gets: at least 1 each."""
    down, across = size.canvas or (size.longest, size.longest)
    if size.fit == "stretch":
        return (round(side * across / down) if size.canvas else side), side
    scale = min(side / min(width, height), size.longest / max(width, height), across / width, down / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def sized(sample: Sample, size: SceneSize, side: int) -> Sample:
    """Return ``sample`` resized to the shortest side, or the height, ``side``."""
    return resized(sample, size_for(*sample.image.size, size, side))


def resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """Return ``sample`` stretched to ``size`` (width, height)."""
    if size == sample.image.size:
        return sample
    ratio = np.array([size[0] / sample.image.width, size[1] / sample.image.height] * 2)
    image = sample.image.resize(size, Image.Resampling.BILINEAR)
    return replace(sample, image=image, boxes=(sample.boxes * ratio).astype(np.float32))


def cropped(sample: Sample, window: Window, min_visible: float) -> Sample:
    """Return what is seen within ``window`` (left, top, right, bottom), objects seen by ``min_visible`` at least."""
    kept = _seen(sample.boxes, window, min_visible)
    boxes = clipped(sample.boxes[kept], window) - np.array([window[0], window[1]] * 2, np.float32)
    return Sample(sample.image.crop(window), boxes, sample.labels[kept])


def crop_window(sample: Sample, config: SceneAugment, rng: np.random.Generator) -> Window:
    """Return a random part of the picture that keeps an object where there is one; after ten tries, all of it."""
    width, height = sample.image.size
    for _ in range(_TRIES):
        area, shape = rng.uniform(*config.crop_area), np.exp(rng.uniform(np.log(0.75), np.log(4 / 3)))
        across = max(1, round(width * min(1.0, np.sqrt(area * shape))))
        down = max(1, round(height * min(1.0, np.sqrt(area / shape))))
        left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
        window = (left, top, left + across, top + down)
        if not len(sample.boxes) or _seen(sample.boxes, window, config.min_visible).any():
            return window
    return 0, 0, width, height


def mosaic(samples: Sequence[Sample], min_visible: float, rng: np.random.Generator) -> Sample:
    """Return four pictures in the quarters of one of the first's size (arXiv 2004.10934), each filling its quarter.

    The quarters meet at a random point between a quarter and three quarters of each side. A picture is scaled until
    it covers its quarter, and cut at a random place.
    """
    width, height = samples[0].image.size
    x, y = (round(side * float(rng.uniform(0.25, 0.75))) for side in (width, height))
    sheet, boxes, labels = Image.new("RGB", (width, height)), list[Boxes](), list[Labels]()
    quarters = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
    for sample, (left, top, right, bottom) in zip(samples, quarters, strict=True):
        part = _covering(sample, right - left, bottom - top, min_visible, rng)
        sheet.paste(part.image, (left, top))
        boxes.append(part.boxes + np.array([left, top, left, top], np.float32))
        labels.append(part.labels)
    return Sample(sheet, np.concatenate(boxes), np.concatenate(labels))


def _covering(sample: Sample, width: int, height: int, min_visible: float, rng: np.random.Generator) -> Sample:
    scale = max(width / sample.image.width, height / sample.image.height)
    size = (max(width, round(sample.image.width * scale)), max(height, round(sample.image.height * scale)))
    scaled = resized(sample, size)
    left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
    return cropped(scaled, (left, top, left + width, top + height), min_visible)


def _seen(boxes: Boxes, window: Window, min_visible: float) -> Flags:
    parts = clipped(boxes, window)
    sides = (parts[:, 2:] - parts[:, :2]).min(axis=1, initial=np.inf)
    return (visible_shares(boxes, window) >= min_visible) & (sides >= _SMALLEST)


def jittered(image: Image.Image, config: SceneAugment, rng: np.random.Generator) -> Image.Image:
    """Return the picture with light, contrast, colourfulness and hue changed at random; boxes stay as they are."""
    drawn = rng.uniform(-1, 1, 4)
    changes = (
        (ImageEnhance.Brightness, config.brightness),
        (ImageEnhance.Contrast, config.contrast),
        (ImageEnhance.Color, config.saturation),
    )
    for (change, most), share in zip(changes, drawn, strict=False):
        image = change(image).enhance(1 + most * float(share)) if most else image
    if not config.hue:
        return image
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(config.hue * float(drawn[3]) * 256) % 256)
    return Image.fromarray(hsv, "HSV").convert("RGB")

"""Detection on large pictures by tiles, and on turned and scaled views of one picture (test-time augmentation).

All of it works on any ``detect(pictures) -> list[Detections]`` and returns such a function's results, so that parts
can be put together: tiles of views, or views of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from visionpeft.data.detection.geometry import mirrored
from visionpeft.evaluation.detection.detections import Detections, joined
from visionpeft.inference.merge import Piece, fused, kept_by_nms, whole_objects

Detect = Callable[[Sequence[Image.Image]], list[Detections]]
Window = tuple[int, int, int, int]


class MergeConfig(BaseModel):
    """How detections of one object become one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["nms", "wbf"] = Field(
        default="nms",
        description="nms keeps the box of the highest score; wbf takes the mean box, weighted by the scores "
        "(arXiv 1910.13302).",
    )
    iou: float = Field(default=0.5, gt=0.0, lt=1.0, description="Boxes of a class that overlap by more are one object.")


class TileConfig(BaseModel):
    """How a large picture is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=640, ge=16, le=16_384, description="Side of a tile, in pixels.")
    overlap: int = Field(default=128, ge=1, description="Pixels that neighbouring tiles share, at least.")
    batch_size: int = Field(default=4, ge=1, description="Tiles that are looked at together.")
    whole: bool = Field(
        default=False, description="Look at the whole picture too: for objects that are larger than a tile."
    )
    merge: MergeConfig = Field(default=MergeConfig(), description="How what several tiles see becomes one.")

    @model_validator(mode="after")
    def _fits_together(self) -> TileConfig:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be smaller than the tile's size {self.size}")
        return self


class ViewConfig(BaseModel):
    """In which ways a picture is looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip_horizontal: bool = Field(default=True, description="Left and right exchanged, too.")
    flip_vertical: bool = Field(default=False, description="Upside down, too.")
    scales: tuple[float, ...] = Field(default=(1.0,), min_length=1, description="Sizes, as factors of the picture's.")
    merge: MergeConfig = Field(default=MergeConfig(by="wbf"), description="How the views' detections become one.")

    @model_validator(mode="after")
    def _possible(self) -> ViewConfig:
        if not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ValueError(f"scales {list(self.scales)}: expected factors from 0.1 to 10")
        return self


def merged(found: Detections, config: MergeConfig, *, views: int = 1) -> Detections:
    """Return ``found`` with one detection an object, highest score first; classes never touch each other.

    Args:
        found: of one picture, from several looks at it.
        config: how.
        views: how often each object could have been seen; with "wbf" an object seen less often is less certain.
    """
    return kept_by_nms(found, config.iou) if config.by == "nms" else fused(found, config.iou, views)


def in_tiles(detect: Detect, config: TileConfig) -> Detect:
    """Return a detector that looks at each picture tile by tile, and finds what the picture has, once each.

    An object on the border of tiles is seen in part by each: parts that agree where their tiles overlap are put
    together, so that it comes whole, whatever its size. A picture that fits a tile is looked at as it is.
    """

    def tiled(pictures: Sequence[Image.Image]) -> list[Detections]:
        return [_tiled(detect, config, picture, str(number)) for number, picture in enumerate(pictures)]

    return tiled


def _tiled(detect: Detect, config: TileConfig, picture: Image.Image, name: str) -> Detections:
    windows = tile_windows(*picture.size, config)
    found: list[Detections] = []
    for start in range(0, len(windows), config.batch_size):
        found += detect([picture.crop(window) for window in windows[start : start + config.batch_size]])
    if len(windows) == 1:
        return found[0].named(name)
    pieces = [Piece(_moved(part, window), window) for part, window in zip(found, windows, strict=True)]
    parts = [whole_objects(name, pieces, picture.size, config.merge.iou)]
    if config.whole:
        parts += detect([picture])
    return merged(joined(name, parts), config.merge)


def tile_windows(width: int, height: int, config: TileConfig) -> list[Window]:
    """Return the tiles (left, top, right, bottom) of a picture, row by row: as few as overlap enough, evenly spread."""
    across, down = _starts(width, config), _starts(height, config)
    right, bottom = min(config.size, width), min(config.size, height)
    return [(left, top, left + right, top + bottom) for top in down for left in across]


def _starts(extent: int, config: TileConfig) -> list[int]:
    rest = max(extent - config.size, 0)
    steps = -(-rest // (config.size - config.overlap))
    return [round(step * rest / steps) for step in range(steps + 1)] if steps else [0]


def _moved(found: Detections, window: Window) -> Detections:
    """Detections of a tile in the picture's pixels, cut at the tile's edge: nothing can be seen beyond it."""
    left, top, right, bottom = window
    boxes = found.boxes + np.array([left, top, left, top], np.float32)
    return replace(found, boxes=boxes.clip([left, top, left, top], [right, bottom, right, bottom]).astype(np.float32))


@dataclass(frozen=True)
class View:
    """One way to look at a picture: scaled, then mirrored left to right (axis 0) and upside down (axis 1)."""

    scale: float
    flips: tuple[int, ...]

    def shown(self, picture: Image.Image) -> Image.Image:
        """Return the picture as this view shows it."""
        if self.scale != 1:
            size = (max(1, round(side * self.scale)) for side in picture.size)
            picture = picture.resize((next(size), next(size)), Image.Resampling.BILINEAR)
        for axis in self.flips:
            way = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)[axis]
            picture = picture.transpose(way)
        return picture

    def undone(self, found: Detections, seen: tuple[int, int], picture: tuple[int, int]) -> Detections:
        """Return what was found on the view of size ``seen`` in the pixels of ``picture`` (both width, height)."""
        boxes = found.boxes
        for axis in reversed(self.flips):
            boxes = mirrored(boxes, seen[axis], axis)
        ratio = np.array([picture[0] / seen[0], picture[1] / seen[1]] * 2, np.float64)
        return replace(found, boxes=(boxes * ratio).astype(np.float32))


def views_of(config: ViewConfig) -> list[View]:
    """Return the views: each scale with each choice of the flips; the picture itself comes first where 1 does."""
    flips: list[tuple[int, ...]] = [()]
    for axis, wanted in enumerate((config.flip_horizontal, config.flip_vertical)):
        flips += [(*others, axis) for others in flips] if wanted else []
    return [View(scale, chosen) for scale in config.scales for chosen in flips]


def in_views(detect: Detect, config: ViewConfig) -> Detect:
    """Return a detector that looks at each picture in every view of ``config`` and merges what it finds."""
    views = views_of(config)

    def viewed(pictures: Sequence[Image.Image]) -> list[Detections]:
        parts: list[list[Detections]] = [[] for _ in pictures]
        for view in views:
            shown = [view.shown(picture) for picture in pictures]
            for part, found, seen, picture in zip(parts, detect(shown), shown, pictures, strict=True):
                part.append(view.undone(found, seen.size, picture.size))
        together = [joined(str(number), part) for number, part in enumerate(parts)]
        return [merged(found, config.merge, views=len(views)) for found in together]

    return viewed

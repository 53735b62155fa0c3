"""Settings of the detection task: its pictures with boxes, how they are varied, what chooses the best step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionpeft.data.detection.augment import SceneAugment
from visionpeft.data.detection.settings import ScenesConfig

Metric = Literal["ap", "ap50", "ap75"]
"""A figure of the validation pictures that chooses the best step: COCO's AP, or at IoU 0.50 or 0.75."""

Side = Annotated[int, Field(ge=16, le=4096)]


class DetectData(ScenesConfig):
    """Pictures with boxes, how they are varied, and the size at which the model sees them."""

    augment: SceneAugment = Field(default=SceneAugment(), description="How training pictures are varied.")
    image_size: Side | tuple[Side, Side] | None = Field(
        default=None,
        description="What the model sees, in pixels: side of a square, or height and width; null: the base's own.",
    )
    sides: tuple[Side, ...] = Field(
        default=(),
        description="Multi-scale: what training draws from instead, heights where pictures are stretched, else their "
        "shortest sides; empty: always as in use.",
    )
    fit: Literal["stretch", "pad"] | None = Field(
        default=None,
        description="How a picture comes into it: stretched, or whole with a border. Null: as base.",
    )
    shortest: Side | None = Field(
        default=None,
        description="With pad: a picture's shorter side has at most so many pixels, as DETR's 800 with image_size "
        "1333; null: as many as there is room for.",
    )
    workers: int = Field(default=2, ge=0, le=64, description="Threads that read and vary the next step's pictures.")

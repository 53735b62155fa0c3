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
    image_size: Side | None = Field(
        default=None, description="Side of the square that the model sees, in pixels; null: the base's own."
    )
    sides: tuple[Side, ...] = Field(
        default=(), description="Sides that training draws from (multi-scale), at most image_size; empty: image_size."
    )
    fit: Literal["stretch", "pad"] | None = Field(
        default=None,
        description="How a picture comes into the square: stretched, or whole with a border. Null: as base.",
    )
    workers: int = Field(default=2, ge=0, le=64, description="Threads that read and vary the next step's pictures.")

"""Pixels, masks and labels as the detectors of transformers take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from visionpeft.data.detection.augment import Sample
from visionpeft.data.detection.geometry import centred
from visionpeft.errors import DataError

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class DetectionBatch:
    """Pictures side by side, padded at the right and below.

    Attributes:
        pixel_values: [N, 3, H, W] float32, normalised; padding is 0.
        pixel_mask: [N, H, W] long, 1 on the picture and 0 on padding.
        labels: one a picture: "class_labels" [n] long and "boxes" [n, 4] float32, (centre x, centre y, width,
            height) as shares.
        sizes: (width, height) of each picture without padding, in pixels.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    labels: list[dict[str, Tensor]]
    sizes: tuple[tuple[int, int], ...]


def padded_batch(
    samples: Sequence[Sample],
    mean: Colour,
    std: Colour,
    *,
    unit: int = 1,
    canvas: tuple[int, int] | None = None,
    relative_to: Literal["picture", "padded"] = "picture",
) -> DetectionBatch:
    """Return one batch of ``samples``, padded to the largest of them.

    Args:
        samples: at least one.
        mean: of red, green and blue in [0, 1]; taken away.
        std: of the same; divided by.
        unit: H and W are multiples of this.
        canvas: (H, W) in pixels for all batches, so that shapes repeat and a step can be recorded; default: the
            largest sides of these samples.
        relative_to: what boxes are shares of. "picture": its own sides, as DETR's authors do and as the
            post-processing of transformers undoes. "padded": the batch's sides, for models that do not see the mask.

    Raises:
        DataError: there are no samples, or one is larger than ``canvas``.
    """
    if not samples:
        raise DataError("a batch needs at least one sample")
    width, height = (max(sample.image.size[axis] for sample in samples) for axis in (0, 1))
    if canvas is not None and (height > canvas[0] or width > canvas[1]):
        raise DataError(
            f"a picture of {width} by {height} pixels does not fit {canvas[1]} by {canvas[0]}: raise canvas"
        )
    height, width = canvas or (-(-height // unit) * unit, -(-width // unit) * unit)
    values = torch.zeros(len(samples), 3, height, width)
    mask = torch.zeros(len(samples), height, width, dtype=torch.long)
    for number, sample in enumerate(samples):
        across, down = sample.image.size
        values[number, :, :down, :across] = _pixels(sample, mean, std)
        mask[number, :down, :across] = 1
    labels = [_labels(s, s.image.size if relative_to == "picture" else (width, height)) for s in samples]
    return DetectionBatch(values, mask, labels, tuple(sample.image.size for sample in samples))


def _pixels(sample: Sample, mean: Colour, std: Colour) -> Tensor:
    pixels = torch.from_numpy(np.array(sample.image, dtype=np.float32)).permute(2, 0, 1).div(255)
    return pixels.sub(torch.tensor(mean)[:, None, None]).div(torch.tensor(std)[:, None, None])


def _labels(sample: Sample, size: tuple[int, int]) -> dict[str, Tensor]:
    return {
        "class_labels": torch.from_numpy(sample.labels.copy()),
        "boxes": torch.from_numpy(centred(sample.boxes, *size)),
    }

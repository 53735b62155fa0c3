"""Pictures as an image tower reads them, with Pillow and numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionpeft.errors import BaseModelError


@dataclass(frozen=True)
class Preprocessor:
    """What a ``preprocessor_config.json`` asks for, in the order in which it is done.

    Attributes:
        resize: (height, width) in pixels; or the shorter side, keeping proportions; None keeps the size.
        crop: (height, width) cut from the middle; None cuts nothing.
        resample: how pixels are made when resizing.
        mean: subtracted from each channel, pixels in [0, 1].
        std: divided by, per channel.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessor:
        """Read the keys of a transformers image processor.

        Raises:
            BaseModelError: a size or a mean is missing or of another form.
        """
        try:
            return cls(
                resize=_resize(config["size"]) if config.get("do_resize", True) else None,
                crop=_crop(config.get("crop_size", config["size"])) if config.get("do_center_crop", False) else None,
                resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
                mean=_three(config["image_mean"]) if config.get("do_normalize", True) else (0.0, 0.0, 0.0),
                std=_three(config["image_std"]) if config.get("do_normalize", True) else (1.0, 1.0, 1.0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BaseModelError(
                f"the encoder's preprocessor_config.json is not understood ({type(error).__name__}: {error}): expected "
                "the keys size, image_mean and image_std of a CLIP, DINOv2 or ViT image processor"
            ) from error

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return pixels [N, 3, height, width], float32, normalized; all pictures must come out of one size."""
        return torch.from_numpy(np.stack([self._pixels(picture.convert("RGB")) for picture in pictures]))

    def _pixels(self, picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        if self.resize is not None:
            height, width = _size_after(picture, self.resize)
            picture = picture.resize((width, height), self.resample)
        if self.crop is not None:
            picture = _center(picture, *self.crop)
        pixels = np.asarray(picture, dtype=np.float32) / 255.0
        mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _size_after(picture: Image.Image, resize: tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(resize, tuple):
        return resize
    short = min(picture.size)
    return max(1, int(picture.height * resize / short)), max(1, int(picture.width * resize / short))


def _center(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Cut the middle out; what lies outside the picture is black."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _resize(size: Any) -> tuple[int, int] | int:
    if isinstance(size, int):
        return size
    return int(size["shortest_edge"]) if "shortest_edge" in size else _crop(size)


def _crop(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

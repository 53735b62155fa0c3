"""The same pictures at one size, kept: decoded once, so that an epoch costs no decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from visionpeft.data.cache import Store
from visionpeft.data.classification.labelled import LabelledPictures
from visionpeft.data.classification.reader import PictureReader

Fit = Literal["stretch", "cover", "inside"]
Resample = Literal["bilinear", "bicubic"]

_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resized(
    pictures: LabelledPictures,
    size: tuple[int, int],
    *,
    fit: Fit = "stretch",
    resample: Resample = "bicubic",
    folder: Path | None = None,
) -> LabelledPictures:
    """Return the pictures at another size; each is decoded and scaled the first time that it is asked for, then kept.

    Kept are 3 bytes a pixel in memory, and in ``folder`` where one is given, by the hash of all that the picture is
    read from: a file that changes is read anew, in the next run.

    Args:
        pictures: any; names, targets and splits stay.
        size: (height, width) in pixels.
        fit: "stretch" makes every picture of this size; "cover" and "inside" keep its shape, and scale it to the
            smallest that covers the size (then cut) or the largest that lies inside of it (then padded).
        resample: the filter.
        folder: where files are kept between runs; None keeps everything in memory.
    """
    return replace(pictures, reader=_Resized(pictures.reader, size, fit, resample, Store(folder)))


def fitted(size: tuple[int, int], wanted: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Return the (width, height) that a picture of ``size`` (width, height) is scaled to, at least 1 each.

    Args:
        size: (width, height) of the picture, in pixels.
        wanted: (height, width), in pixels.
        fit: as for :func:`resized`.
    """
    height, width = wanted
    if fit == "stretch":
        return width, height
    scales = (width / size[0], height / size[1])
    scale = max(scales) if fit == "cover" else min(scales)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class _Resized(PictureReader):
    def __init__(
        self, reader: PictureReader, size: tuple[int, int], fit: Fit, resample: Resample, store: Store
    ) -> None:
        super().__init__()
        self._reader = reader
        self._size = size
        self._fit: Fit = fit
        self._resample: Resample = resample
        self._store = store
        self._parts: dict[str, dict[str, str | int]] = {}

    def read(self, name: str) -> Image.Image:
        kept = self._store.get(self._named(name), lambda: {"rgb": torch.from_numpy(self._scaled(name))})
        return Image.fromarray(kept["rgb"].numpy())

    def key(self, name: str) -> str:
        return str(self._named(name))

    def _named(self, name: str) -> dict[str, str | int]:
        """All that the scaled picture depends on; taken once, as the source's key reads the whole file."""
        if name not in self._parts:
            height, width = self._size
            self._parts[name] = {
                "picture": self._reader.key(name), "height": height, "width": width, "fit": self._fit,
                "resample": self._resample,
            }  # fmt: skip
        return self._parts[name]

    def _scaled(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image = self._reader.read(name)
        size = fitted(image.size, self._size, self._fit)
        return np.array(image if image.size == size else image.resize(size, _RESAMPLE[self._resample]))

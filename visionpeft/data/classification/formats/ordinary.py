"""PNG, JPEG, TIFF and their like: read as everywhere, and grey of more than 8 bits through the window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from visionpeft.data.classification.formats.intensity import fixed_ends, linear, percentile_ends
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig
from visionpeft.data.pictures import decode, eight_bit
from visionpeft.errors import DataError


def count(path: Path, volumes: VolumeConfig) -> int:
    """Return 1: of an animation or a TIFF of several pages the first is taken."""
    del path, volumes
    return 1


def read(path: Path, number: int, intensity: IntensityConfig, volumes: VolumeConfig) -> Image.Image:
    """Return the picture, 8-bit RGB, upright; 16-bit, 32-bit and float grey through the window.

    Raises:
        DataError: it cannot be read; as :func:`visionpeft.data.pictures.read_picture`.
    """
    del number, volumes
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return from_bytes(content, path, intensity)


def from_bytes(content: bytes, path: Path, intensity: IntensityConfig) -> Image.Image:
    """Return the picture whose file's bytes are at hand; ``path`` is what it is called in messages.

    Raises:
        DataError: as :func:`read`.
    """
    return decode(content, path, lambda image, name: _windowed(image, name, intensity)).image


def _windowed(image: Image.Image, path: Path, intensity: IntensityConfig) -> Image.Image:
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    if intensity.window in ("auto", "full"):
        return eight_bit(image, path)
    if intensity.window == "file":
        raise DataError(f"{path} has no window of its own, as DICOM has: set intensity.window to full or fixed.")
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are no numbers (NaN or infinite): replace them.")
    ends = fixed_ends(intensity) if intensity.window == "fixed" else percentile_ends(values, intensity.percentiles)
    return Image.fromarray(np.rint(linear(values, ends) * 255).astype(np.uint8))

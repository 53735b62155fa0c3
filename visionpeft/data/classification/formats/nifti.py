"""Slices of NIfTI volumes, cut by the patient's axes and shown as a radiologist sees them."""

from __future__ import annotations

import zlib
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpeft.data.classification.formats.intensity import (
    Ends,
    Values,
    fixed_ends,
    grey_picture,
    linear,
    percentile_ends,
)
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig
from visionpeft.data.pictures import check_size
from visionpeft.data.reason import reason
from visionpeft.errors import DataError, MissingExtraError

MOST_VOXELS = 2**29
"""Voxels of a volume (2 GiB as float32)."""

_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
_BROKEN = (OSError, ValueError, EOFError, KeyError, TypeError, OverflowError, zlib.error)


def count(path: Path, volumes: VolumeConfig) -> int:
    """Return how many slices the volume has along the axis; only the header is read.

    Raises:
        DataError: it is no NIfTI volume, or too large.
        MissingExtraError: nibabel is not installed.
    """
    order = _orientation(_opened(path), path)
    place = order[:, 0].tolist().index(_AXES[volumes.axis])
    return int(_opened(path).shape[place])


def read(path: Path, number: int, intensity: IntensityConfig, volumes: VolumeConfig) -> Image.Image:
    """Return slice ``number`` (from 0: from the patient's left, back or feet), in grey.

    Axial and coronal slices have the patient's right at the left, front or head at the top; sagittal ones the front
    at the left and the head at the top. Voxels count as square.

    Raises:
        DataError: there is no such slice, the volume is damaged or holds values that are no numbers.
        MissingExtraError: nibabel is not installed.
    """
    where = path.stat()
    values = _volume(path, where.st_mtime_ns, where.st_size)
    axis = _AXES[volumes.axis]
    if number >= values.shape[axis]:
        raise DataError(f"{path} has {values.shape[axis]} {volumes.axis} slices, there is no number {number}.")
    cut = np.take(values, number, axis=axis)
    check_size(cut.shape[0], cut.shape[1], path)
    ends = _ends(path, (where.st_mtime_ns, where.st_size), intensity)
    # the first of the two axes left runs to the right of the picture, the second up: both are mirrored, then swapped
    return grey_picture(linear(cut, ends)[::-1, ::-1].T)


def _ends(path: Path, version: tuple[int, int], intensity: IntensityConfig) -> Ends:
    if intensity.window == "fixed":
        return fixed_ends(intensity)
    if intensity.window == "file":
        raise DataError(f"{path} has no window of its own, as DICOM has: set intensity.window to percentile or fixed.")
    return _percentiles(path, *version, (0.0, 100.0) if intensity.window == "full" else intensity.percentiles)


@lru_cache(maxsize=2)
def _percentiles(path: Path, modified: int, size: int, percentiles: tuple[float, float]) -> Ends:
    """Of the whole volume, so that all its slices are shown alike."""
    return percentile_ends(_volume(path, modified, size), percentiles)


@lru_cache(maxsize=1)
def _volume(path: Path, modified: int, size: int) -> Values:
    """The volume [x, y, z] float32 with x to the patient's right, y to the front, z to the head; the last is kept."""
    del modified, size
    image = _opened(path)
    order = _orientation(image, path)
    try:
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    except _BROKEN as error:
        raise DataError(f"{path} is damaged or cut short: {reason(error)}. Replace it or take it away.") from error
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are no numbers (NaN or infinite): replace them.")
    turned = np.transpose(values, np.argsort(order[:, 0]))
    flips = tuple(int(order[place, 0]) for place in range(3) if order[place, 1] < 0)
    return np.flip(turned, flips)


def _orientation(image: Any, path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[3, 2]: for each of the file's axes, which patient's axis it is and in which direction, 1 or -1."""
    import nibabel

    try:
        order = np.asarray(nibabel.orientations.io_orientation(image.affine))  # pyright: ignore[reportPrivateImportUsage]
    except (ValueError, np.linalg.LinAlgError) as error:
        raise DataError(f"{path} does not say how it lies in the patient: its affine is not usable.") from error
    if order.shape != (3, 2) or not np.isfinite(order).all():
        raise DataError(f"{path} does not say how it lies in the patient: its affine is not usable.")
    return order.astype(np.int64)


def _opened(path: Path) -> Any:
    """The volume's header, checked; its values are not read yet."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as missing:
        raise MissingExtraError(f"{path} is a NIfTI volume: pip install 'visionpeft[medical]' to read it.") from missing
    try:
        image: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
        shape: tuple[int, ...] = tuple(int(side) for side in image.shape)
    except (*_BROKEN, ImageFileError, HeaderDataError) as error:
        raise DataError(f"{path} is not a NIfTI volume: {reason(error)}. Replace it or take it away.") from error
    if not isinstance(image, nibabel.Nifti1Image):  # pyright: ignore[reportPrivateImportUsage]
        raise DataError(f"{path} is not a NIfTI volume. Replace it or take it away.")
    dtype: Any = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise DataError(f"{path} holds colours, and one value a voxel is needed.")
    if len(shape) < 3 or min(shape) < 1 or prod(shape[3:]) != 1:
        raise DataError(f"{path} has the shape {list(shape)}: three dimensions are needed, one volume a file.")
    if prod(shape) > MOST_VOXELS:
        raise DataError(f"{path} is too large: {prod(shape):,} voxels, at most {MOST_VOXELS:,} can be read.")
    return image

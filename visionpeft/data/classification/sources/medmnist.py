"""MedMNIST files (arXiv 2110.14795): equal pictures in one .npz, all sizes checked before a byte of data is read."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from PIL import Image

from visionpeft.data.classification.reader import PictureReader
from visionpeft.data.classification.rows import Listing, Row
from visionpeft.data.classification.settings import MedMnistSource, PicturesConfig
from visionpeft.data.pictures import check_size
from visionpeft.data.reason import reason
from visionpeft.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

MOST_BYTES = 32 * 2**30
"""Of one array, unpacked; the largest of MedMNIST has 16 GB."""

_BROKEN = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, SyntaxError, TypeError, TokenError,
)  # fmt: skip
_PARTS = {"train": "train", "val": "validation", "test": "test"}


class _ArrayReader(PictureReader):
    def __init__(self, images: Mapping[str, Array]) -> None:
        super().__init__()
        self._images = images

    def read(self, name: str) -> Image.Image:
        return Image.fromarray(self._array(name)).convert("RGB")

    def key(self, name: str) -> str:
        values = self._array(name)
        return hashlib.sha256(f"{values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()

    def _array(self, name: str) -> Array:
        part, number = name.split("/")
        return self._images[part][int(number)]


def list_medmnist(source: MedMnistSource, config: PicturesConfig) -> Listing:
    """Return the pictures of the file's parts, named train/0 and so on.

    Labels are numbers [N, 1], or 0 and 1 a label [N, C] with C > 1 (or with kind: multilabel).

    Raises:
        DataError: the file is missing, holds pickles, or its arrays are not those of two-dimensional MedMNIST.
    """
    shapes = _shapes(source.path)
    parts = [part for part in _PARTS if f"{part}_images" in shapes]
    if not parts:
        raise DataError(f"{source.path} holds {', '.join(shapes) or 'nothing'}: train_images and its like are needed.")
    arrays = _arrays(source.path, [f"{part}_{what}" for part in parts for what in ("images", "labels")], shapes)
    several = config.kind == "multilabel" or any(arrays[f"{part}_labels"].shape[-1] > 1 for part in parts)
    names = source.names or _numbers([arrays[f"{part}_labels"] for part in parts], several)
    rows = [row for part in parts for row in _rows(source.path, part, arrays[f"{part}_labels"], names, several)]
    return Listing(rows, _ArrayReader({part: arrays[f"{part}_images"] for part in parts}), names, several)


def _numbers(labels: list[Array], several: bool) -> tuple[str, ...]:
    count = labels[0].shape[1] if several else max(int(array.max(initial=0)) for array in labels) + 1
    if count > 100_000:
        raise DataError(f"there are labels up to {count - 1:,}: they are numbered from 0 and are at most 100,000.")
    return tuple(map(str, range(count)))


def _rows(path: Path, part: str, labels: Array, names: tuple[str, ...], several: bool) -> list[Row]:
    if several and (labels.shape[1] != len(names) or not np.isin(labels, (0, 1)).all()):
        raise DataError(
            f"{path}: {part}_labels is {list(labels.shape)}, and 0 or 1 for each of {len(names)} is needed."
        )
    if not several and labels.size and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(
            f"{path}: {part}_labels holds {labels.min()} to {labels.max()}, and there are {len(names)} names."
        )
    found: list[Row] = []
    for number, values in enumerate(labels.tolist()):
        present = [place for place, value in enumerate(values) if value] if several else values
        name = f"{part}/{number}"
        found.append(Row(f"{path}: {name}", name, tuple(names[place] for place in present), split=_PARTS[part]))
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in the file, from their headers alone."""
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename[:-4]: _shape(archive, info, path) for info in members}
    except _BROKEN as error:
        raise DataError(f"{path} is not an .npz file, or damaged: {reason(error)}. Fetch it anew.") from error


def _shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> tuple[int, ...]:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        start = member.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {info.filename} is a pickle, which could run code: it is not opened.")
    size = prod(shape) * dtype.itemsize
    if size > MOST_BYTES or size + start != info.file_size:
        raise DataError(
            f"{path}: {info.filename} says that it has the shape {list(shape)}, which does not fit the file."
        )
    if info.filename.endswith("_images.npy"):
        _check_pictures(shape, dtype, path, info.filename)
    elif info.filename.endswith("_labels.npy") and (len(shape) != 2 or dtype.kind not in "uib"):
        raise DataError(
            f"{path}: {info.filename} is {list(shape)} of {dtype}, and whole numbers [N, labels] are needed."
        )
    return shape


def _check_pictures(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, name: str) -> None:
    flat = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
    if not flat or dtype != np.uint8:
        kind = "three-dimensional, which is not supported: " if len(shape) >= 4 and shape[-1] != 3 else ""
        raise DataError(
            f"{path}: {name} is {kind}{list(shape)} of {dtype}, and uint8 [N, H, W] or [N, H, W, 3] is needed."
        )
    check_size(shape[2], shape[1], path)


def _arrays(path: Path, names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    missing = [name for name in names if name not in shapes]
    if missing:
        raise DataError(f"{path} holds no {missing[0]}.")
    for images, labels in zip(names[::2], names[1::2], strict=True):
        if shapes[images][0] != shapes[labels][0]:
            raise DataError(f"{path}: {images} has {shapes[images][0]} and {labels} {shapes[labels][0]} entries.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except _BROKEN as error:
        raise DataError(f"{path} is damaged: {reason(error)}. Fetch it anew.") from error

"""The kinds of files, chosen by what a file is, and the reader of the pictures in a folder's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from visionpeft.data.classification.formats import dicom, nifti, ordinary
from visionpeft.data.classification.reader import PictureReader
from visionpeft.data.classification.settings import IntensityConfig, PicturesConfig, VolumeConfig
from visionpeft.data.pictures import NEEDS_CONVERSION, SUFFIXES
from visionpeft.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: for messages.
        suffixes: how its files' names end, in small letters.
        count: returns how many pictures a file holds.
        read: returns one of them.
        patient: returns whose it is, where files say that.
    """

    name: str
    suffixes: frozenset[str]
    count: Callable[[Path, VolumeConfig], int]
    read: Callable[[Path, int, IntensityConfig, VolumeConfig], Image.Image]
    patient: Callable[[Path], str | None] = lambda path: None


FORMATS = (
    Format("picture", SUFFIXES, ordinary.count, ordinary.read),
    Format("DICOM", frozenset({".dcm", ".dicom", ".ima"}), dicom.count, dicom.read, dicom.patient),
    Format("NIfTI", frozenset({".nii", ".nii.gz"}), nifti.count, nifti.read),
)
"""A new kind of file is one row here and its file beside this one."""

_PICTURE, _DICOM, _NIFTI = FORMATS
_FRAME = re.compile(r"(.+)#(\d{1,9})")


def format_of(path: Path) -> Format | None:
    """Return what kind of file it is: by its suffix, or DICOM by its mark; None where it is no picture."""
    name = path.name.lower()
    for kind in FORMATS:
        if any(name.endswith(suffix) for suffix in kind.suffixes):
            return kind
    return _DICOM if _has_dicom_mark(path) else None


def _has_dicom_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def needs_conversion(path: Path) -> bool:
    """Return whether it is a picture in a format that has to be converted first, such as .heic."""
    return path.suffix.lower() in NEEDS_CONVERSION


class FileReader(PictureReader):
    """Reads pictures from files below a folder, which names may not leave.

    Args:
        root: the folder.
        config: says which pictures of a file are taken and how values become grey.
    """

    def __init__(self, root: Path, config: PicturesConfig) -> None:
        super().__init__()
        self._root = root
        self._resolved = root.resolve()
        self._intensity = config.intensity
        self._volumes = config.volumes

    def names(self, name: str) -> list[str]:
        """Return the names of the pictures that are taken of a file: ``name`` itself, or ``name#0`` and so on.

        Raises:
            DataError: there is no such file in the folder, it is no picture, or a wanted one is not in it.
        """
        path, number, kind = self._located(name)
        count = kind.count(path, self._volumes)
        if number is not None and number >= count:
            raise DataError(f"{path} holds {count} pictures, there is no number {number}.")
        if number is not None or (count == 1 and kind is not _NIFTI):
            return [name]
        return [f"{name}#{taken}" for taken in _taken(count, self._volumes, path)]

    def patient(self, name: str) -> str | None:
        """Return the patient that the file itself names, if any.

        Raises:
            DataError: as :meth:`names`.
        """
        path, _, kind = self._located(name)
        return kind.patient(path)

    def read(self, name: str) -> Image.Image:
        """Return the picture; see :class:`PictureReader`."""
        path, number, kind = self._located(name)
        return kind.read(path, number or 0, self._intensity, self._volumes)

    def key(self, name: str) -> str:
        """Return the hash of the file's bytes, the number of the picture in it, and the settings of grey."""
        path, number, _ = self._located(name)
        where = path.stat()
        content = _digest(path, where.st_mtime_ns, where.st_size)
        settings = self._intensity.model_dump_json() + self._volumes.axis
        return hashlib.sha256(f"{content}#{number}{settings}".encode()).hexdigest()

    def _located(self, name: str) -> tuple[Path, int | None, Format]:
        path, number = self._root / name, None
        found = _FRAME.fullmatch(name)
        if found and not path.exists():
            path, number = self._root / found[1], int(found[2])
        if not path.resolve().is_relative_to(self._resolved):
            raise DataError(f"{path} lies outside of {self._root}: name the folder above both as the pictures' folder.")
        if not path.is_file():
            raise DataError(f"{path} does not exist.{_nearest(path)}")
        kind = format_of(path)
        if kind is None:
            hint = ": convert it to PNG or JPEG" if needs_conversion(path) else ""
            raise DataError(f"{path} is not a picture that can be read{hint}.")
        if number is not None and kind is _PICTURE:
            raise DataError(f"{path} is one picture: take the #{number} away.")
        return path, number, kind


@lru_cache(maxsize=8)
def _digest(path: Path, modified: int, size: int) -> str:
    del modified, size
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _taken(count: int, volumes: VolumeConfig, path: Path) -> list[int]:
    if volumes.take == "middle":
        return [count // 2]
    if volumes.take == "all":
        return list(range(0, count, volumes.every))
    missing = [number for number in volumes.take if number >= count]
    if missing:
        raise DataError(f"{path} holds {count} pictures, there is no number {missing[0]} (volumes.take).")
    return list(volumes.take)


def _nearest(path: Path) -> str:
    folder = path.parent
    return did_you_mean(path.name, [entry.name for entry in folder.iterdir()]) if folder.is_dir() else ""

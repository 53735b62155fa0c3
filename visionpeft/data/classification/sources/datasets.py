"""Datasets of Hugging Face's library, saved in a folder or on the hub; versions from 4 on run no code of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from visionpeft.data.classification.formats.ordinary import from_bytes
from visionpeft.data.classification.reader import PictureReader
from visionpeft.data.classification.rows import Faults, Listing, Row
from visionpeft.data.classification.settings import DatasetSource, IntensityConfig, PicturesConfig
from visionpeft.data.given import SPLITS
from visionpeft.data.reason import reason
from visionpeft.errors import DataError, MissingExtraError, did_you_mean

_SAVED = ("dataset_info.json", "dataset_dict.json")
_EXPECTED = (
    "a folder written by save_to_disk or one of .parquet files (folders of classes are read by 'format: folder')"
)
_OLDEST = 4
"""Major version: before it, loading a dataset could run a script that came with it."""


class _Cells:
    """The columns besides the picture, as text and as labels."""

    def __init__(self, features: Mapping[str, Any], source: DatasetSource, where: str) -> None:
        self._source = source
        for name in (source.image, source.label, *([source.patient] if source.patient else [])):
            if name not in features:
                near = did_you_mean(name, features)
                raise DataError(f"{where} has no column '{name}'.{near} It has: {', '.join(features)}.")
        feature = features[source.label]
        self.several = hasattr(feature, "feature") or isinstance(feature, list)
        inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
        self.names: tuple[str, ...] | None = tuple(getattr(inner, "names", None) or ()) or None

    def labels(self, value: Any) -> tuple[str, ...]:
        """The label texts of a cell; a number below 0 stands for no label, as unlabelled test sets have it."""
        values = list(value or ()) if self.several else [] if value is None else [value]
        if self.names is None:
            return tuple(map(str, values))
        return tuple(
            self.names[number] if number < len(self.names) else str(number) for number in values if number >= 0
        )

    def row(self, name: str, split: str | None, cells: Mapping[str, Any]) -> Row:
        """The row of one picture."""
        source = self._source
        patient = str(cells[source.patient]) if source.patient and cells[source.patient] not in (None, "") else None
        if source.patient and patient is None:
            raise DataError(f"{name}: the column '{source.patient}' is empty: write whose picture it is.")
        other = {key: str(value) for key, value in cells.items() if key not in (source.label, source.patient)}
        return Row(name, name, self.labels(cells[source.label]), patient, split, other)


class _DatasetReader(PictureReader):
    def __init__(self, parts: Mapping[str, Any], source: DatasetSource, intensity: IntensityConfig) -> None:
        super().__init__()
        self._parts = parts
        self._source = source
        self._intensity = intensity

    def read(self, name: str) -> Image.Image:
        return from_bytes(self._bytes(name), Path(self._source.path, name), self._intensity)

    def key(self, name: str) -> str:
        return hashlib.sha256(self._bytes(name) + self._intensity.model_dump_json().encode()).hexdigest()

    def _bytes(self, name: str) -> bytes:
        part, number = name.rsplit("/", 1)
        cell = self._parts[part][int(number)][self._source.image] or {}
        if not cell.get("bytes"):
            raise DataError(f"{self._source.path}: {name} holds no picture, only a path: save the dataset anew.")
        return cell["bytes"]


def list_dataset(source: DatasetSource, config: PicturesConfig, faults: Faults) -> Listing:
    """Return the rows of all parts; parts named train, validation or test are splits.

    Raises:
        DataError: the dataset cannot be found or lacks a column, or its parts are named otherwise.
        MissingExtraError: the library is not installed, or too old.
    """
    parts = _parts(source)
    features: Mapping[str, Any] = next(iter(parts.values())).features
    cells = _Cells(features, source, source.path)
    undecoded = {name: _undecoded(part, source) for name, part in parts.items()}
    rows: list[Row] = []
    for name, part in undecoded.items():
        split = SPLITS.get(name.lower()) if len(parts) > 1 else None
        for number, values in enumerate(part.remove_columns([source.image])):
            try:
                rows.append(cells.row(f"{name}/{number}", split, values))
            except DataError as error:
                faults.add(f"{source.path}: {error}")
    return Listing(rows, _DatasetReader(undecoded, source, config.intensity), cells.names, cells.several)


def _undecoded(part: Any, source: DatasetSource) -> Any:
    """The part with its pictures as bytes, so that they pass the same checks as files."""
    import datasets

    feature = part.features[source.image]
    stored = isinstance(feature, dict) and "bytes" in feature  # .parquet files that other programs wrote
    if not stored and not isinstance(feature, datasets.Image):
        raise DataError(
            f"{source.path}: the column '{source.image}' holds no pictures but {part.features[source.image]}."
        )
    return part.cast_column(source.image, datasets.Image(decode=False))


def _parts(source: DatasetSource) -> dict[str, Any]:
    library = _library(source)
    folder = Path(source.path)
    if folder.exists() and (source.name or source.revision):
        raise DataError(f"{source.path} is a folder: name and revision are for the hub, take them away.")
    files = parquet_parts(folder)
    try:
        if files:
            found = library.load_dataset("parquet", data_files=files)
        elif folder.exists():
            found = library.load_from_disk(source.path)
        else:
            found = library.load_dataset(source.path, name=source.name, revision=source.revision)
    except Exception as error:  # the library raises errors of many other libraries
        hint = _EXPECTED if folder.exists() else "a folder, or a dataset on the hub"
        raise DataError(f"{source.path} cannot be read as {hint}: {reason(error)}.") from error
    parts = dict(found) if isinstance(found, library.DatasetDict) else {"train": found}
    other = [name for name in parts if name.lower() not in SPLITS]
    if len(parts) > 1 and other:
        raise DataError(f"{source.path} has the part '{other[0]}', which is none of train, validation and test.")
    return parts


def is_dataset(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk, or holds a dataset's .parquet files as the hub does."""
    return any((folder / name).is_file() for name in _SAVED) or bool(parquet_parts(folder))


def parquet_parts(folder: Path) -> dict[str, list[str]]:
    """Return the .parquet files in a folder or its ``data``, by part: "train-00000-of-00002.parquet" is of "train"."""
    found: dict[str, list[str]] = {}
    if any((folder / name).is_file() for name in _SAVED):
        return found
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        part = file.stem.split("-")[0].lower()
        found.setdefault(part, []).append(str(file))
    return found


def _library(source: DatasetSource) -> Any:
    needed = f"{source.path} is read with the library datasets, {_OLDEST} or later: pip install 'visionpeft[datasets]'."
    try:
        import datasets
    except ImportError as missing:
        raise MissingExtraError(needed) from missing
    if int(datasets.__version__.split(".")[0]) < _OLDEST:
        raise MissingExtraError(needed)
    return datasets

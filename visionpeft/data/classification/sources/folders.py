"""Class folders: ``root/class/picture.png``, or ``root/train/class/picture.png``; folders inside are searched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from visionpeft.data.classification.formats.files import FileReader, format_of, needs_conversion
from visionpeft.data.classification.rows import Listing, Row
from visionpeft.data.classification.settings import FolderSource, PicturesConfig
from visionpeft.data.given import SPLITS
from visionpeft.errors import DataError, did_you_mean
from visionpeft.progress import Progress

_SHOWN = 5


def list_folders(source: FolderSource, config: PicturesConfig, progress: Progress) -> Listing:
    """Return the pictures below the root, sorted by name; a class without pictures counts as a label.

    Files that are no pictures are named in one line; hidden ones are passed over.

    Raises:
        DataError: the root is missing or holds no class folders, or some folders are splits and others are not.
    """
    folders = _folders(source.path)
    if not folders:
        raise DataError(f"{source.path} holds no folders: put the pictures of each class into a folder of its own.")
    splits = [folder for folder in folders if folder.name.lower() in SPLITS]
    if splits and len(splits) < len(folders):
        other = next(folder.name for folder in folders if folder not in splits)
        raise DataError(f"{source.path} holds the split '{splits[0].name}' beside '{other}', which is none: move it.")
    classes = [(inner, SPLITS[folder.name.lower()]) for folder in splits for inner in _folders(folder)]
    classes = classes or [(folder, None) for folder in folders]
    left_out: list[str] = []
    rows = [row for folder, split in classes for row in _rows(folder, split, source, left_out)]
    if left_out:
        more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        progress.say(f"{source.path}: left out {', '.join(left_out[:_SHOWN])}{more}: not pictures.")
    labels = tuple(sorted({folder.name for folder, _ in classes}))
    return Listing(rows, FileReader(source.path, config), labels)


def _rows(folder: Path, split: str | None, source: FolderSource, left_out: list[str]) -> Iterator[Row]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(source.path).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if format_of(path) is None and not needs_conversion(path):
            left_out.append(name)
        else:
            yield Row(str(path), name, (folder.name,), _patient(name, source), split)


def _patient(name: str, source: FolderSource) -> str | None:
    if source.patient is None:
        return None
    found = re.search(source.patient, name)
    if found is None or not found[1]:
        raise DataError(f"{source.path / name}: the pattern of patient, '{source.patient}', finds none in '{name}'.")
    return found[1]


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        beside = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DataError(f"the folder {root} does not exist.{did_you_mean(root.name, beside)}")
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))

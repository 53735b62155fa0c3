"""COCO json: images, categories and annotations, joined by their ids."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from visionpeft.data.detection.raw import UNREADABLE, Corners, RawObject, RawScene, RawScenes
from visionpeft.data.detection.settings import CocoSource
from visionpeft.data.given import inside, text_of
from visionpeft.errors import DataError
from visionpeft.progress import Progress

_MOST_BYTES = 2 << 30
Row = Mapping[str, Any]


def read_coco(source: CocoSource, progress: Progress) -> RawScenes:
    """Return the scenes of one or several json files; classes are in the order of their ids.

    Raises:
        DataError: a file is missing or no COCO json; ids or names stand twice; the files' categories differ.
    """
    del progress
    named = source.annotations if isinstance(source.annotations, dict) else {None: source.annotations}
    files = {split: source.folder / path for split, path in named.items()}
    read = {split: _read_file(path) for split, path in files.items()}
    labels = _same_labels({files[split]: content.categories for split, content in read.items()})
    scenes = [
        scene
        for split, content in read.items()
        for scene in _scenes(source, files[split], content, split, _folder(source, files[split], split))
    ]
    faults = [
        (
            files[split],
            f"annotation {row.get('id', '?')}",
            f"it is of image {row.get('image_id')!r}, which is not there",
        )
        for split, content in read.items()
        for row in content.annotations
        if _key(row.get("image_id")) not in content.images
    ]
    return RawScenes(tuple(scenes), labels, tuple(faults))


class _Content:
    """The three tables of a file, by id."""

    def __init__(self, path: Path, tables: Row) -> None:
        self.images = _by_id(path, "images", _rows(path, tables, "images"))
        self.categories = {
            key: _text(path, f"category {key!r}", "name", row)
            for key, row in sorted(_by_id(path, "categories", _rows(path, tables, "categories")).items())
        }
        self.annotations = _rows(path, tables, "annotations")


def _read_file(path: Path) -> _Content:
    try:
        tables = json.loads(text_of(path, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(tables, dict):
        raise DataError(f"{path} holds no object with images, categories and annotations: it is no COCO file")
    return _Content(path, cast(Row, tables))


def _rows(path: Path, tables: Row, name: str) -> list[Row]:
    rows = tables.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in cast(list[Any], rows)):
        raise DataError(f"{path} has no list of objects '{name}': a COCO file has images, categories and annotations")
    return cast(list[Row], rows)


def _key(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def _by_id(path: Path, name: str, rows: list[Row]) -> dict[int | str, Row]:
    found: dict[int | str, Row] = {}
    for number, row in enumerate(rows):
        if not isinstance(row.get("id"), int | str):
            raise DataError(f"{path}: {name}[{number}] has no id")
        if found.setdefault(_key(row["id"]), row) is not row:
            raise DataError(f"{path}: the id {row['id']!r} stands twice in {name}")
    kinds = {type(key) for key in found}
    if len(kinds) > 1:
        raise DataError(f"{path}: ids of {name} are partly numbers and partly texts: make them one")
    return found


def _text(path: Path, what: str, key: str, row: Row) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {what} has no {key}")
    return value


def _same_labels(categories: Mapping[Path, Mapping[int | str, str]]) -> tuple[str, ...]:
    """The names in the order of their ids: the same in all files, and different from each other."""
    (first, wanted), *others = categories.items()
    for path, found in others:
        if found != wanted:
            raise DataError(f"{path} has other categories than {first}: {list(found.values())[:5]} … must be the same")
    names = tuple(wanted.values())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{first}: the category '{twice}' stands there twice, with two ids")
    return names


def _folder(source: CocoSource, file: Path, split: str | None) -> Path:
    if source.images is None:
        return file.parent
    images = source.images[split] if isinstance(source.images, dict) else source.images  # type: ignore[index]
    return source.folder / images


def _scenes(source: CocoSource, file: Path, content: _Content, split: str | None, folder: Path) -> list[RawScene]:
    objects: dict[int | str, list[RawObject]] = defaultdict(list)
    for row in content.annotations:
        objects[_key(row.get("image_id"))].append(_object(row, content.categories))
    scenes: list[RawScene] = []
    for key, row in content.images.items():
        named = _text(file, f"image {key!r}", "file_name", row)
        picture = inside(folder, named, file)
        name = picture.relative_to(source.folder) if picture.is_relative_to(source.folder) else Path(named)
        scenes.append(RawScene(name.as_posix(), picture, file, tuple(objects[key]), _size(row), split))
    return scenes


def _size(row: Row) -> tuple[int, int] | None:
    width, height = row.get("width"), row.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and width * height > 0 else None


def _object(row: Row, categories: Mapping[int | str, str]) -> RawObject:
    where = f"annotation {row.get('id', '?')} of image {row.get('image_id')!r}"
    label = categories.get(_key(row.get("category_id")))
    box, fault = _corners(row.get("bbox"))
    if label is None:
        fault = fault or f"its category {row.get('category_id')!r} is not among the categories"
    return RawObject(where, label or "", box, row.get("iscrowd", 0) == 1, fault)


def _corners(bbox: Any) -> tuple[Corners, str]:
    """Corners of [x, y, width, height]; a negative width stays inverted, for the checks to find."""
    numbers: list[Any] = cast(list[Any], bbox) if isinstance(bbox, list) else []
    if len(numbers) != 4 or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return UNREADABLE, f"its bbox is {str(bbox)[:60]}: expected [x, y, width, height]"
    left, top, width, height = (float(number) for number in numbers)
    return (left, top, left + width, top + height), ""

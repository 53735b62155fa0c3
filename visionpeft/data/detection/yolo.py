"""YOLO text files: a line ``class cx cy width height`` an object, as shares of the picture's sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

import yaml

from visionpeft.data.detection.raw import UNREADABLE, Corners, RawObject, RawScene, RawScenes
from visionpeft.data.detection.settings import YoloSource
from visionpeft.data.given import SPLITS, inside, text_of
from visionpeft.data.pictures import picture_paths
from visionpeft.errors import DataError
from visionpeft.progress import Progress

_MOST_BYTES = 64 << 20
_SHOWN = 5


def read_yolo(source: YoloSource, progress: Progress) -> RawScenes:
    """Return the scenes of a YOLO folder: the splits of ``data.yaml``, or ``images/`` with a folder a split or none.

    Raises:
        DataError: names of classes are missing; a path leads out of the folder; pictures lack their text file and
            ``missing`` is "error".
    """
    names, places = _described(source, progress)
    found = [
        (split, path) for split, place in places for path in _listed(source.folder, place, progress) if path.is_file()
    ]
    if not found:
        raise DataError(f"{source.folder} holds no pictures where it should: {', '.join(str(p) for _, p in places)}")
    lacking = [path for _, path in found if not label_file(source.folder, path).is_file()]
    if lacking:
        shown, expected = ", ".join(str(path) for path in lacking[:_SHOWN]), label_file(source.folder, lacking[0])
        if source.missing == "error":
            raise DataError(
                f"{len(lacking)} of {len(found)} pictures have no text file (expected {expected}, …): "
                f"{shown}. Add them, or set missing to empty where such pictures hold no objects."
            )
        progress.say(f"{source.folder}: {len(lacking)} pictures without a text file hold no objects: {shown}.")
    return RawScenes(tuple(_scene(source.folder, path, split, names) for split, path in found), names)


def label_file(folder: Path, picture: Path) -> Path:
    """Return the text file of ``picture``: under ``labels`` for the last ``images`` of its path, or beside it."""
    parts = list(picture.relative_to(folder).parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return folder.joinpath(*parts).with_suffix(".txt")


def _described(source: YoloSource, progress: Progress) -> tuple[tuple[str, ...], list[tuple[str | None, Path]]]:
    """Names of the classes, and (split, folder or list of pictures) of each part."""
    file = next((source.folder / name for name in ("data.yaml", "data.yml") if (source.folder / name).is_file()), None)
    content = _yaml(file) if file else {}
    names = source.names or _names(file, content.get("names"))
    if not names:
        raise DataError(f"{source.folder} has no data.yaml with names: give the names of the classes as names")
    if file and content.get("path"):
        progress.say(f"{file}: its path '{content['path']}' is not followed; its other paths begin at {source.folder}.")
    places: list[tuple[str | None, Path]] = []
    for key, value in content.items():
        if key in SPLITS and value and file:
            places += [(SPLITS[key], _place(source.folder, file, one)) for one in _several(file, key, value)]
    return names, places or _plain_places(source.folder)


def _yaml(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(text_of(file, _MOST_BYTES))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no names: expected names, train, val")
    return cast(Mapping[str, Any], content)


def _names(file: Path | None, value: Any) -> tuple[str, ...]:
    """Names as a list, or as a table number -> name without gaps."""
    if isinstance(value, dict):
        table = cast(dict[Any, Any], value)
        if sorted(table, key=str) != sorted(range(len(table)), key=str):
            raise DataError(f"{file}: names must be numbered 0 to {len(table) - 1}, got {list(table)[:8]}")
        value = [table[number] for number in range(len(table))]
    names = tuple(str(name) for name in cast(list[Any], value)) if isinstance(value, list) else ()
    if len(set(names)) < len(names):
        raise DataError(f"{file}: the names {list(names)} are not all different")
    return names


def _several(file: Path, key: str, value: Any) -> list[str]:
    values: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise DataError(f"{file}: {key} is {str(value)[:60]}: expected a folder, or a list of them")
    return cast(list[str], values)


def _place(folder: Path, file: Path, named: str) -> Path:
    """The folder that data.yaml means; a leading "../", as one labelling service writes, means the folder itself."""
    parts = PurePosixPath(named).parts
    while parts and parts[0] in ("..", "."):
        parts = parts[1:]
    place = inside(folder, "/".join(parts) or ".", file)
    if not place.exists() and (place.parent / "images" / place.name).is_dir():
        return place.parent / "images" / place.name
    return place / "images" if (place / "images").is_dir() else place


def _plain_places(folder: Path) -> list[tuple[str | None, Path]]:
    images = folder / "images"
    if not images.is_dir():
        raise DataError(f"{folder} has neither a data.yaml that names train and val nor a folder images")
    parts = [(SPLITS.get(path.name), path) for path in sorted(images.iterdir()) if path.is_dir()]
    return [(split, path) for split, path in parts if split] or [(None, images)]


def _listed(folder: Path, place: Path, progress: Progress) -> Iterator[Path]:
    """Pictures of a folder, or those that a text file lists, one a line."""
    if place.suffix != ".txt":
        yield from picture_paths(place, progress)
        return
    for number, line in enumerate(text_of(place, _MOST_BYTES).splitlines(), 1):
        if line.strip():
            path = inside(folder, line.strip().removeprefix("./"), place)
            if not path.is_file():
                raise DataError(f"{place}:{number} names {path}, which is not there")
            yield path


def _scene(folder: Path, picture: Path, split: str | None, names: tuple[str, ...]) -> RawScene:
    file = label_file(folder, picture)
    lines = text_of(file, _MOST_BYTES).splitlines() if file.is_file() else []
    objects = tuple(_object(line, f"line {number}", names) for number, line in enumerate(lines, 1) if line.strip())
    name = picture.relative_to(folder).as_posix()
    return RawScene(name, picture, file, objects, split=split, relative=True)


def _object(line: str, where: str, names: tuple[str, ...]) -> RawObject:
    words = line.split()
    box, fault = _corners(words)
    label = ""
    if not fault and words[0].isdecimal() and int(words[0]) < len(names):
        label = names[int(words[0])]
    elif not fault:
        fault = f"its class {words[0][:20]} is not among 0 to {len(names) - 1}"
    return RawObject(where, label, box, fault=fault)


def _corners(words: list[str]) -> tuple[Corners, str]:
    try:
        values = [float(word) for word in words[1:]]
    except ValueError:
        values = []
    if len(values) != 4:
        return UNREADABLE, f"it reads '{' '.join(words)[:60]}': expected class cx cy width height"
    x, y, width, height = values
    if max(abs(value) for value in values) > 2:
        return UNREADABLE, f"it reads '{' '.join(words)[:60]}': expected shares of the picture from 0 to 1, not pixels"
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), ""

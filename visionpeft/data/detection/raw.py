"""What a reader returns: the objects as they are written, unchecked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from visionpeft.errors import DataError

Corners = tuple[float, float, float, float]
UNREADABLE: Corners = (math.nan, math.nan, math.nan, math.nan)

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in files -> ours."""


@dataclass(frozen=True)
class RawObject:
    """One object as a file has it.

    Attributes:
        where: its place in the file: "object 3", "line 5", "annotation 17".
        label: the name of its class.
        box: (x_min, y_min, x_max, y_max) in pixels; with ``relative`` as shares of the picture.
        crowd: see ``Scene.crowd``.
        fault: what kept the reader from understanding it; "" where nothing did.
    """

    where: str
    label: str
    box: Corners
    crowd: bool = False
    fault: str = ""


@dataclass(frozen=True)
class RawScene:
    """One picture and its objects as files have them.

    Attributes:
        name: the picture's path from the set's folder.
        picture: where it lies.
        file: what describes its objects.
        objects: unchecked.
        size: (width, height) as the file says; None where it does not.
        split: "train", "validation", "test" or None.
        relative: whether boxes are shares of the picture's sides.
    """

    name: str
    picture: Path
    file: Path
    objects: tuple[RawObject, ...]
    size: tuple[int, int] | None = None
    split: str | None = None
    relative: bool = False


@dataclass(frozen=True)
class RawScenes:
    """All that a reader found.

    Attributes:
        scenes: one a picture.
        labels: the classes that the files declare; None where they only use them.
        faults: (file, place, what is wrong) of objects that belong to no picture.
    """

    scenes: tuple[RawScene, ...]
    labels: tuple[str, ...] | None = None
    faults: tuple[tuple[Path, str, str], ...] = field(default=())


def inside(folder: Path, name: str, said_by: Path) -> Path:
    """Return ``folder / name`` for a name that a file gives.

    Raises:
        DataError: the name leads out of the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"{said_by} names the file {name[:80]!r}: expected a path within {folder}")
    return folder.joinpath(*parts.parts)


def text_of(path: Path, most_bytes: int) -> str:
    """Return the text of a file of at most ``most_bytes``.

    Raises:
        DataError: it is missing, larger, or not UTF-8.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise DataError(f"{path} is larger than {most_bytes:,} bytes: it is not what it should be")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error

"""What a reader returns: the objects as they are written, unchecked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

Corners = tuple[float, float, float, float]
UNREADABLE: Corners = (math.nan, math.nan, math.nan, math.nan)


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

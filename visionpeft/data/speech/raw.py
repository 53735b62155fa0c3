"""What a reader returns: utterances as files have them, unchecked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, cast

from visionpeft.data.given import inside, split_named
from visionpeft.data.speech.settings import Columns
from visionpeft.data.speech.utterances import Timed
from visionpeft.data.tables import Cells
from visionpeft.errors import DataError, did_you_mean

USUAL: dict[str, tuple[str, ...]] = {
    "file": ("path", "file_name", "file", "audio", "audio_filepath", "filename"),
    "text": ("text", "transcription", "transcript", "sentence"),
    "start": ("start",),
    "end": ("end",),
    "segments": ("segments",),
    "split": ("split",),
}
"""Columns that mean something where the settings name none, the first that is there; see ``Columns``."""


@dataclass(frozen=True)
class RawUtterance:
    """One row as a file has it.

    Attributes:
        where: its place for messages: "clips.csv, line 3".
        name: the sound's path from the set's folder.
        path: where it lies.
        text: what is said; "" where only segments say it.
        start: seconds from the file's beginning.
        end: seconds; None is the file's end.
        segments: its parts, with times from ``start`` on.
        split: "train", "validation", "test" or None.
        columns: all that means nothing here.
        fault: what kept the reader from understanding it; "" where nothing did.
    """

    where: str
    name: str
    path: Path
    text: str = ""
    start: float = 0.0
    end: float | None = None
    segments: tuple[Timed, ...] = ()
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    fault: str = ""


@dataclass(frozen=True)
class Meaning:
    """Which column of a table means what; None means nothing there.

    Attributes:
        file: the sound's path.
        text: what is said.
        start: seconds.
        end: seconds.
        segments: JSON.
        split: train, validation or test.
    """

    file: str
    text: str | None
    start: str | None
    end: str | None
    segments: str | None
    split: str | None

    def used(self) -> set[str]:
        """Return the columns that mean something."""
        return {name for name in vars(self).values() if name is not None}


def meaning_of(table: Path, header: Sequence[str], columns: Columns) -> Meaning:
    """Return which columns of ``table`` mean what: those that are named, else the usual ones.

    Raises:
        DataError: a named column is not there; or none with the path, or none with the words.
    """
    found: dict[str, str | None] = {}
    for part, usual in USUAL.items():
        named: str | None = getattr(columns, part)
        if named is not None and named not in header:
            raise DataError(
                f"{table} has no column '{named}'.{did_you_mean(named, header)} It has: {', '.join(header)}."
            )
        found[part] = named or next((name for name in usual if name in header), None)
    for part, needed in (("file", found["file"]), ("text", found["text"] or found["segments"])):
        if needed is None:
            raise DataError(
                f"{table} has no column {' or '.join(USUAL[part])}; it has: {', '.join(header)}. "
                f"Name the one that is meant as columns.{part}."
            )
    return Meaning(**cast(dict[str, Any], found))


def raw_utterance(where: str, cells: Cells, meaning: Meaning, folder: Path, table: Path) -> RawUtterance:
    """Return the row as an utterance; what cannot be understood is its fault.

    Args:
        where: the row's place, for messages.
        cells: by column.
        meaning: of the columns.
        folder: that paths begin in, and may not leave.
        table: that says so.
    """
    name = _relative(cells[meaning.file], folder)
    columns = {column: text for column, text in cells.items() if column not in meaning.used()}
    text = cells[meaning.text] if meaning.text else ""
    try:
        path = inside(folder, name, table)
        start, end = (_seconds(cells, column) for column in (meaning.start, meaning.end))
        segments = _segments(cells[meaning.segments]) if meaning.segments else ()
        written = cells[meaning.split] if meaning.split else ""
        split = split_named(written) if written else None
    except DataError as error:
        return RawUtterance(where, name, folder, fault=str(error))
    return RawUtterance(where, name, path, text, start or 0.0, end, segments, split, columns)


def _relative(name: str, folder: Path) -> str:
    """The path from ``folder``, also where it is written out in full."""
    path = PurePosixPath(name.replace("\\", "/"))
    for parent in (folder, folder.absolute()):
        if path.is_absolute() and path.is_relative_to(parent.as_posix()):
            return path.relative_to(parent.as_posix()).as_posix()
    return name.removeprefix("./")


def _seconds(cells: Cells, column: str | None) -> float | None:
    text = cells[column] if column else ""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise DataError(f"its {column} is '{text[:40]}': expected seconds, from 0")
    return value


def _segments(text: str) -> tuple[Timed, ...]:
    """Segments of a JSON list, in order of time; those without words are pauses and left out."""
    try:
        values = json.loads(text or "[]")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise DataError(f"its segments are '{text[:40]}': expected a JSON list of start, end and text")
    found = [_segment(value, number) for number, value in enumerate(cast(list[Any], values), 1)]
    for before, after in pairwise(found):
        if after.start < before.start:
            raise DataError(f"its segment at {after.start:g} s stands after that at {before.start:g} s: sort them")
    return tuple(segment for segment in found if segment.text)


def _segment(value: Any, number: int) -> Timed:
    entry = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    start, end, text = (entry.get(key) for key in ("start", "end", "text"))
    times = [time for time in (start, end) if isinstance(time, int | float) and not isinstance(time, bool)]
    if len(times) != 2 or not isinstance(text, str) or not 0 <= times[0] < times[1] < math.inf:
        raise DataError(f"its segment {number} is {str(value)[:60]}: expected start < end in seconds, and text")
    return Timed(float(times[0]), float(times[1]), text.strip())

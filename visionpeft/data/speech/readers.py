"""The table of layouts, and the one way to open speech with its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from visionpeft.data.given import SPLITS
from visionpeft.data.speech.audio import SUFFIXES
from visionpeft.data.speech.checks import checked_utterances
from visionpeft.data.speech.raw import Meaning, RawUtterance, meaning_of, raw_utterance
from visionpeft.data.speech.settings import AudioFolder, Columns, CommonVoice, SpeechConfig, SpeechTable
from visionpeft.data.speech.utterances import Utterances
from visionpeft.data.tables import rows_of
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SHOWN = 5

Reader = Callable[[Any, Progress], list[RawUtterance]]


def open_speech(config: SpeechConfig, progress: Progress = SILENT) -> Utterances:
    """Return the utterances that ``config`` names, every one checked.

    All that is wrong is told at once, by file and row.

    Raises:
        DataError: a table is missing or broken; rows cannot be used and ``on_bad`` is "error", or are too long and
            ``long`` is not "skip"; or nothing is left.
        MissingExtraError: soundfile, or pyarrow for parquet, is not installed.
    """
    raw = READERS[config.source.format](config.source, progress)
    found = checked_utterances(raw, config, progress)
    if not len(found):
        raise DataError(f"{_place(config)} holds no utterance that can be used")
    return found


def read_table(source: SpeechTable, progress: Progress) -> list[RawUtterance]:
    """Return the rows of a table.

    Raises:
        DataError: it is missing, broken, or lacks a column.
    """
    del progress
    return list(_rows(source.path, source.audio or source.path.parent, source.columns))


def read_common_voice(source: CommonVoice, progress: Progress) -> list[RawUtterance]:
    """Return the rows of Common Voice's parts, those of train, dev and test with their split.

    Raises:
        DataError: a part or the folder ``clips`` is missing, or a part is broken.
    """
    columns, clips, found = Columns(file="path", text="sentence"), source.folder / "clips", list[RawUtterance]()
    if not clips.is_dir():
        raise DataError(f"{source.folder} holds no folder clips: name the folder of one language, as in cv-corpus/rw.")
    for part in source.parts:
        rows = list(_rows(source.folder / f"{part}.tsv", clips, columns, SPLITS.get(part), quoted=False))
        if not rows:
            progress.say(f"{source.folder / part}.tsv holds no rows.")
        found += rows
    return found


def read_audio_folder(source: AudioFolder, progress: Progress) -> list[RawUtterance]:
    """Return what the metadata of a folder and of its splits name; sound that no row names is told in one line.

    Raises:
        DataError: there is no metadata file, two stand in one folder, or one is broken.
    """
    found: list[RawUtterance] = []
    for folder in _described_folders(source.folder):
        tables = [folder / name for name in METADATA if (folder / name).is_file()]
        if len(tables) > 1:
            raise DataError(f"{folder} holds {' and '.join(t.name for t in tables)}: keep one of them.")
        columns = source.columns.model_copy(update={"file": source.columns.file or "file_name"})
        rows = _rows(tables[0], folder, columns, SPLITS.get(folder.name), by_folder=True)
        top = folder.relative_to(source.folder)
        found += (replace(row, name=(top / row.name).as_posix()) for row in rows)
    named = {row.path for row in found}
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    unnamed = sorted(
        path.relative_to(source.folder).as_posix()
        for path in source.folder.rglob("*")
        if path.suffix.lower() in known and path not in named
    )
    if unnamed:
        progress.say(f"{source.folder}: no row names {_some(unnamed)}: left out.")
    return found


def _described_folders(folder: Path) -> list[Path]:
    """The folder and those of its splits (maybe below ``data``) that hold metadata."""
    tops = [folder, folder / "data"]
    places = [place for top in tops for place in (top, *(top / name for name in SPLITS))]
    found = [place for place in places if any((place / name).is_file() for name in METADATA)]
    if not found:
        raise DataError(f"{folder} holds no {', '.join(METADATA)}, and no split in it does: name the folder with it.")
    return found


def _rows(
    table: Path,
    folder: Path,
    columns: Columns,
    split: str | None = None,
    *,
    quoted: bool = True,
    by_folder: bool = False,
) -> Iterator[RawUtterance]:
    """Rows of a table; ``split`` is that of rows which name none, or with ``by_folder`` that of their first folder."""
    meaning: Meaning | None = None
    for where, cells in rows_of(table, quoted=quoted):
        meaning = meaning or meaning_of(table, list(cells), columns)
        yield _with_split(raw_utterance(where, cells, meaning, folder, table), split, by_folder)


def _with_split(row: RawUtterance, split: str | None, by_folder: bool) -> RawUtterance:
    first = row.name.split("/")[0] if by_folder and "/" in row.name else ""
    given = row.split or split or SPLITS.get(first)
    return row if given == row.split else replace(row, split=given)


def _place(config: SpeechConfig) -> Path:
    source = config.source
    return source.path if isinstance(source, SpeechTable) else source.folder


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


READERS: Mapping[str, Reader] = {
    "table": read_table,
    "common_voice": read_common_voice,
    "audiofolder": read_audio_folder,
}
"""Layout -> its reader: takes the settings of that layout, returns rows as they are written."""

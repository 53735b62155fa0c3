"""Tables with one row a picture: CSV and TSV by the csv module, parquet by pyarrow."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from visionpeft.data.classification.formats.files import FileReader
from visionpeft.data.classification.reason import reason
from visionpeft.data.classification.rows import Faults, Listing, Row, split_named
from visionpeft.data.classification.settings import PicturesConfig, TableSource
from visionpeft.errors import DataError, MissingExtraError, did_you_mean

Cells = Mapping[str, str]


def list_table(source: TableSource, config: PicturesConfig, faults: Faults) -> Listing:
    """Return the table's rows in their order; columns that mean nothing here are kept as they are.

    Raises:
        DataError: the table is missing or damaged, or lacks a column.
        MissingExtraError: it is parquet and pyarrow is not installed.
    """
    reader = FileReader(source.pictures or source.path.parent, config)
    rows: list[Row] = []
    for where, cells in _numbered(source.path):
        if not rows:
            _check_columns(source, cells)
        try:
            rows.append(_row(where, cells, source))
        except DataError as error:
            faults.add(f"{where}: {error}")
    labels = source.label if isinstance(source.label, tuple) else None
    return Listing(rows, reader, labels, several=labels is not None or source.separator is not None)


def _numbered(path: Path) -> Iterator[tuple[str, Cells]]:
    """The rows with file and line (parquet: row) for messages."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path} is no table: {', '.join(READERS)} can be read.")
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"the table {path} does not exist.{did_you_mean(path.name, beside)}")
    return read(path)


def _comma(path: Path) -> Iterator[tuple[str, Cells]]:
    return _delimited(path, ",")


def _tab(path: Path) -> Iterator[tuple[str, Cells]]:
    return _delimited(path, "\t")


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[str, Cells]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(lines, [])
            _check_header(path, header)
            for cells in lines:
                if cells:
                    yield f"{path}, line {lines.line_num}", _named(path, lines.line_num, header, cells)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {reason(error)}. Save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _named(path: Path, line: int, header: list[str], cells: list[str]) -> Cells:
    if len(cells) != len(header):
        count = f"{len(cells)} cells, and the header has {len(header)}"
        raise DataError(f"{path}, line {line}: {count}: quote cells with commas in them.")
    return dict(zip(header, (cell.strip() for cell in cells), strict=True))


def _parquet(path: Path) -> Iterator[tuple[str, Cells]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as missing:
        raise MissingExtraError(f"{path} is parquet: pip install 'visionpeft[tables]' to read it.") from missing
    try:
        with parquet.ParquetFile(path) as file:
            _check_header(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", {name: _text(value) for name, value in cells.items()}
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {reason(error)}. Write it anew.") from error


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Cells]]]] = {".csv": _comma, ".tsv": _tab, ".parquet": _parquet}
"""A table's suffix -> what reads its rows."""


def _text(value: Any) -> str:
    """A value as a CSV would have it: 1 for 1.0 and for true, nothing for null and NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value).strip()


def _check_header(path: Path, header: list[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if not header or twice is not None:
        fault = f"has the column '{twice}' twice" if header else "is empty"
        raise DataError(f"{path} {fault}: the first line names each column once.")


def _check_columns(source: TableSource, cells: Cells) -> None:
    labels = source.label if isinstance(source.label, tuple) else (source.label,)
    wanted = [source.file, *labels, *(name for name in (source.patient, source.split) if name)]
    for name in wanted:
        if name not in cells:
            has = ", ".join(cells)
            raise DataError(f"{source.path} has no column '{name}'.{did_you_mean(name, cells)} It has: {has}.")


def _row(where: str, cells: Cells, source: TableSource) -> Row:
    if not cells[source.file]:
        raise DataError(f"the column '{source.file}' is empty: it names the picture.")
    patient = cells[source.patient] if source.patient else None
    if patient == "":
        raise DataError(f"the column '{source.patient}' is empty: write whose picture it is.")
    split = split_named(cells[source.split]) if source.split else None
    used = {source.file, source.patient, source.split}
    columns = {name: text for name, text in cells.items() if name not in used}
    return Row(where, cells[source.file] + source.suffix, _labels(cells, source), patient, split, columns)


def _labels(cells: Cells, source: TableSource) -> tuple[str, ...]:
    if isinstance(source.label, tuple):
        return tuple(name for name in source.label if _is_present(cells[name], name, source))
    text = cells[source.label]
    if source.separator is None:
        return (text,) if text else ()
    return tuple(part.strip() for part in text.split(source.separator) if part.strip())


def _is_present(text: str, column: str, source: TableSource) -> bool:
    word = text.lower()
    if word in {known.lower() for known in source.present}:
        return True
    if word in {known.lower() for known in source.absent}:
        return False
    known = ", ".join((*source.present, *source.absent))
    raise DataError(f"the column '{column}' holds '{text}', which is none of {known}: see present and absent.")

"""Tables with one row a thing: CSV and TSV by the csv module, JSON lines, parquet by pyarrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from visionpeft.data.reason import reason
from visionpeft.errors import DataError, MissingExtraError, did_you_mean

Cells = Mapping[str, str]


def rows_of(path: Path, *, quoted: bool = True) -> Iterator[tuple[str, Cells]]:
    """Yield the rows of a table, each with its file and line (parquet: row) for messages.

    Every cell is text, without spaces around it: 1 for 1.0 and for true, nothing for null, JSON for lists and objects.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file.
        quoted: whether quotation marks around a cell of a .tsv file belong to the file and not to the cell.

    Raises:
        DataError: it is missing, of another kind, or damaged.
        MissingExtraError: it is parquet and pyarrow is not installed.
    """
    if not quoted and path.suffix.lower() == ".tsv" and path.is_file():
        return _delimited(path, "\t", csv.QUOTE_NONE)
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


def _delimited(path: Path, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> Iterator[tuple[str, Cells]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
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


def _json_lines(path: Path) -> Iterator[tuple[str, Cells]]:
    """One JSON object a line; a key that a line lacks is empty, and all keys are known from the first line on."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            found = [(number, _object(path, number, line)) for number, line in enumerate(file, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: {reason(error)}. Save it as JSON lines in UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    header = {name: "" for _, cells in found for name in cells}
    _check_header(path, list(header))
    for number, cells in found:
        yield f"{path}, line {number}", header | {name: _text(value) for name, value in cells.items()}


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is no JSON: {reason(error)}. Write one object a line.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {number} holds {line.strip()[:40]!r}: expected one object a line.")
    return cast(dict[str, Any], value)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Cells]]]] = {
    ".csv": _comma,
    ".tsv": _tab,
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}
"""A table's suffix -> what reads its rows."""


def _text(value: Any) -> str:
    """A value as a CSV would have it: 1 for 1.0 and for true, nothing for null and NaN; lists and objects as JSON."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
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

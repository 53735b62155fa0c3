"""Tables with one row a picture."""

from __future__ import annotations

from visionpeft.data.classification.formats.files import FileReader
from visionpeft.data.classification.rows import Faults, Listing, Row
from visionpeft.data.classification.settings import PicturesConfig, TableSource
from visionpeft.data.given import split_named
from visionpeft.data.tables import Cells, rows_of
from visionpeft.errors import DataError, did_you_mean


def list_table(source: TableSource, config: PicturesConfig, faults: Faults) -> Listing:
    """Return the table's rows in their order; columns that mean nothing here are kept as they are.

    Raises:
        DataError: the table is missing or damaged, or lacks a column.
        MissingExtraError: it is parquet and pyarrow is not installed.
    """
    reader = FileReader(source.pictures or source.path.parent, config)
    rows: list[Row] = []
    for where, cells in rows_of(source.path):
        if not rows:
            _check_columns(source, cells)
        try:
            rows.append(_row(where, cells, source))
        except DataError as error:
            faults.add(f"{where}: {error}")
    labels = source.label if isinstance(source.label, tuple) else None
    return Listing(rows, reader, labels, several=labels is not None or source.separator is not None)


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

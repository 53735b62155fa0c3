"""One self-contained page about a run: pictures, curves, figures, each measured by the run itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visionpeft import safefile
from visionpeft.evaluation.page import LARGEST_SIDE, data_uri, drawn, fill_template
from visionpeft.evaluation.report_data import Picture, Preview, ReportData, from_run
from visionpeft.evaluation.report_figures import charts, tiles

REPORT = "report.html"
_MOST_COLUMNS = 9
_LARGEST_SHEET = 1280


@dataclass(frozen=True)
class PreviewTable:
    """Previews as a table: one column a step, one row a prompt; a cell is a data URI, "" where there is none.

    With one picture a step, a sheet of many perhaps, ``sheets`` is set: they are shown large, one after the other.
    """

    steps: list[int]
    rows: list[tuple[str, list[str]]]
    left_out: int
    sheets: bool


def write_report(folder: Path, data: ReportData | None = None) -> Path:
    """Write ``folder/report.html`` and return its path.

    The page needs nothing besides itself: pictures are inside, there is no script, and it forbids the browser to
    load anything.

    Args:
        folder: of the run.
        data: what to show; default what the folder holds.

    Raises:
        DataError: the folder is no run.
        FileFormatError: a file in it cannot be read.
        OutputError: the page cannot be written.
    """
    page = render(data if data is not None else from_run(folder))
    path = folder / REPORT
    safefile.write_atomically(path, [page.encode()])
    return path


def render(data: ReportData) -> str:
    """Return the page as HTML; every text of the run is escaped."""
    return fill_template(
        "report.html.jinja",
        data=data,
        outcome=data.outcome,
        sheet=data_uri(data.sheet, side=None) if data.sheet else "",
        tiles=tiles(data),
        charts=[drawn(chart) for chart in charts(data)],
        previews=preview_table(data.history.previews, data.outcome.best_step),
    )


def preview_table(previews: Sequence[Preview], best_step: int | None) -> PreviewTable:
    """Arrange previews by step and prompt; with many steps, some evenly spaced and the chosen one."""
    shown = _spaced(previews, best_step)
    captions = [picture.caption for picture in max(shown, key=lambda p: len(p.pictures)).pictures] if shown else []
    sheets = len(captions) == 1
    side = _LARGEST_SHEET if sheets else LARGEST_SIDE
    rows = [(caption, [_cell(preview, row, side) for preview in shown]) for row, caption in enumerate(captions)]
    return PreviewTable([preview.step for preview in shown], rows, len(previews) - len(shown), sheets)


def _spaced(previews: Sequence[Preview], best_step: int | None) -> list[Preview]:
    if len(previews) <= _MOST_COLUMNS:
        return list(previews)
    last = len(previews) - 1
    kept = {math.floor(i * last / (_MOST_COLUMNS - 1) + 0.5) for i in range(_MOST_COLUMNS)}
    return [p for i, p in enumerate(previews) if i in kept or p.step == best_step]


def _cell(preview: Preview, row: int, side: int) -> str:
    pictures: tuple[Picture, ...] = preview.pictures
    return data_uri(pictures[row].path, side) if row < len(pictures) else ""

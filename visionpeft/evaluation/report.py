"""One self-contained page about a run: pictures, curves, figures, each measured by the run itself."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from visionpeft import safefile
from visionpeft.errors import FileFormatError
from visionpeft.evaluation.report_data import Picture, Preview, ReportData, from_run
from visionpeft.evaluation.report_figures import charts, spell_bytes, spell_number, spell_seconds, tiles

REPORT = "report.html"
_MOST_COLUMNS = 9
_LARGEST_SIDE, _LARGEST_SHEET = 512, 1280


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
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("visionpeft.evaluation", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": spell_bytes, "seconds": spell_seconds, "number": spell_number}
    return environment.get_template("report.html.jinja").render(
        data=data,
        outcome=data.outcome,
        sheet=data_uri(data.sheet, side=None) if data.sheet else "",
        tiles=tiles(data),
        charts=[(chart, Markup(chart.svg)) for chart in charts(data)],  # noqa: S704  (charts.py escapes its texts)
        previews=preview_table(data.history.previews, data.outcome.best_step),
        total_seconds=sum(data.outcome.seconds.values()),
    )


def preview_table(previews: Sequence[Preview], best_step: int | None) -> PreviewTable:
    """Arrange previews by step and prompt; with many steps, some evenly spaced and the chosen one."""
    shown = _spaced(previews, best_step)
    captions = [picture.caption for picture in max(shown, key=lambda p: len(p.pictures)).pictures] if shown else []
    sheets = len(captions) == 1
    side = _LARGEST_SHEET if sheets else _LARGEST_SIDE
    rows = [(caption, [_cell(preview, row, side) for preview in shown]) for row, caption in enumerate(captions)]
    return PreviewTable([preview.step for preview in shown], rows, len(previews) - len(shown), sheets)


def data_uri(path: Path, side: int | None = _LARGEST_SIDE) -> str:
    """Return a picture as ``data:`` text: PNG as it is, without its metadata; JPEG where it had to be made smaller.

    Args:
        path: of the picture.
        side: pixels of the longer side at most; None leaves it.

    Raises:
        FileFormatError: it is no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path} is not a picture that can be read: {error}") from error
    kind = "png"
    if side is not None and max(picture.size) > side:
        kind = "jpeg"
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), optimize=True, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _spaced(previews: Sequence[Preview], best_step: int | None) -> list[Preview]:
    if len(previews) <= _MOST_COLUMNS:
        return list(previews)
    last = len(previews) - 1
    kept = {math.floor(i * last / (_MOST_COLUMNS - 1) + 0.5) for i in range(_MOST_COLUMNS)}
    return [p for i, p in enumerate(previews) if i in kept or p.step == best_step]


def _cell(preview: Preview, row: int, side: int) -> str:
    pictures: tuple[Picture, ...] = preview.pictures
    return data_uri(pictures[row].path, side) if row < len(pictures) else ""

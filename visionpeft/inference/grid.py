"""Many pictures on one sheet: rows and columns with their names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from visionpeft.errors import DataError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK = (32, 32, 32)
_PAPER = (255, 255, 255)
_GAP = 8


def grid(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    smallest: int = 160,
) -> Image.Image:
    """Return one RGB sheet with ``rows`` of pictures, labels at the left and above, and a title.

    Args:
        rows: pictures, top to bottom and left to right; rows may differ in length. All cells get the size of the
            largest picture.
        row_labels: one a row, or none; wrapped where long.
        column_labels: one a column, or none; wrapped where long.
        title: printed above everything.
        smallest: pictures with a smaller longer side are enlarged to it by a whole factor, pixel by pixel.

    Raises:
        DataError: there are no pictures, or not as many labels as rows or columns.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise DataError("a sheet needs at least one picture")
    _check_labels("row", row_labels, len(rows))
    _check_labels("column", column_labels, columns)
    plan = _plan(rows, columns, row_labels, column_labels, title, smallest)
    sheet = Image.new("RGB", (plan.left + columns * plan.across, plan.top + len(rows) * plan.down), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((_GAP, _GAP), plan.title, _INK, plan.font)
    for column, text in enumerate(plan.column_texts):
        draw.multiline_text((plan.left + column * plan.across, plan.band), text, _INK, plan.font)
    for row, text in enumerate(plan.row_texts):
        draw.multiline_text((_GAP, plan.top + row * plan.down), text, _INK, plan.font)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            size = picture.width * plan.factor, picture.height * plan.factor
            enlarged = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (plan.left + column * plan.across, plan.top + row * plan.down))
    return sheet


@dataclass(frozen=True)
class _Plan:
    """Where things lie on a sheet, in pixels: the first cell at (left, top), cells ``across`` and ``down`` apart."""

    font: Font
    factor: int
    left: int
    top: int
    band: int
    across: int
    down: int
    title: str
    row_texts: list[str]
    column_texts: list[str]


def _plan(
    rows: Sequence[Sequence[Image.Image]],
    columns: int,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    smallest: int,
) -> _Plan:
    cells = [picture.size for row in rows for picture in row]
    widest, highest = max(width for width, _ in cells), max(height for _, height in cells)
    factor = max(1, math.ceil(smallest / max(widest, highest)))
    width, height = widest * factor, highest * factor
    font = ImageFont.load_default(size=max(14, min(width // 12, 28)))
    row_texts = [wrap(text, font, max(width, 120)) for text in row_labels]
    column_texts = [wrap(text, font, width) for text in column_labels]
    left = _GAP + max((_extent(text, font)[0] + _GAP for text in row_texts), default=0)
    heading = wrap(title, font, left + columns * (width + _GAP) - 2 * _GAP)
    band = _GAP + (_extent(heading, font)[1] + _GAP if heading else 0)
    top = band + max((_extent(text, font)[1] + _GAP for text in column_texts), default=0)
    down = max([height, *(_extent(text, font)[1] for text in row_texts)]) + _GAP
    return _Plan(font, factor, left, top, band, width + _GAP, down, heading, row_texts, column_texts)


def wrap(text: str, font: Font, width: int) -> str:
    """Return ``text`` with line breaks between words so that each line takes at most ``width`` pixels.

    A word that is wider alone is broken where it reaches the edge.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in _pieces(paragraph, font, width):
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return "\n".join(lines)


def _pieces(text: str, font: Font, width: int) -> list[str]:
    pieces: list[str] = []
    for word in text.split():
        rest = word
        while font.getlength(rest) > width and len(rest) > 1:
            cut = next((n for n in range(len(rest) - 1, 1, -1) if font.getlength(rest[:n]) <= width), 1)
            pieces.append(rest[:cut])
            rest = rest[cut:]
        pieces.append(rest)
    return pieces


def _extent(text: str, font: Font) -> tuple[int, int]:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font)
    return int(right) + 1, int(bottom) + 1


def _check_labels(kind: str, labels: Sequence[str], count: int) -> None:
    if labels and len(labels) != count:
        raise DataError(f"{len(labels)} {kind} labels for {count} {kind}s: give one for each, or none")

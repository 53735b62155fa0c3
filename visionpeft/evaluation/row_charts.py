"""Charts with a row for each name, as SVG text: values with their intervals, matrices of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from visionpeft.evaluation.charts import svg, text_at, ticks
from visionpeft.evaluation.page import NOTHING

WIDTH = 420
_ROW, _TOP, _BOTTOM = 30, 18, 22
_NAMES, _VALUES = 130, 90
_LETTER = 6.6
"""Width of a letter of a chart's text, in pixels, on average."""

_ROOMY_CELLS = 9
"""Classes up to which a matrix has room for shares below the counts, and for wide cells."""


@dataclass(frozen=True)
class Row:
    """A value with its interval.

    Attributes:
        label: its name.
        value: None where it has none; the row then says ``note``.
        low: lower end of the interval; None where it has none.
        high: upper end.
        note: a few words behind the name: "12, few".
        faint: whether it is one not to rely on.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    faint: bool = False


def interval_chart(title: str, rows: Sequence[Row], *, level: tuple[str, float] | None = None) -> str:
    """Return an SVG of values in [0, 1] with their intervals, a row each; "" where no row has a value.

    Args:
        title: what a screen reader says first.
        rows: from the top.
        level: name and place of an upright line to compare with: the value of all together.
    """
    known = [end for row in rows for end in (row.low, row.value, row.high) if end is not None]
    if not known:
        return ""
    low, high = _range([*known, *([level[1]] if level else [])])
    left, right, bottom = _NAMES, WIDTH - _VALUES, _TOP + _ROW * len(rows)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts: list[str] = []
    for value in ticks(low, high, 4):
        parts.append(f'<line class="grid" x1="{place(value):.1f}" x2="{place(value):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(text_at(place(value), bottom + 17, f"{value:g}", "middle"))
    if level is not None:
        x = place(level[1])
        parts.append(f'<line class="level base" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(text_at(x, _TOP - 4, level[0], "middle", "label base"))
    for number, row in enumerate(rows):
        y = _TOP + (number + 0.5) * _ROW
        ends = None if row.low is None or row.high is None else (place(row.low), place(row.high))
        middle = None if row.value is None else place(row.value)
        parts += _row(row, y, ends, middle)
    return svg(title, WIDTH, bottom + _BOTTOM, parts)


def matrix_chart(title: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return an SVG of how often class i (row) was taken for class j (column), shaded by the share of the row.

    Args:
        title: what a screen reader says first.
        labels: of the classes, [C].
        counts: [C, C].
    """
    roomy = len(labels) <= _ROOMY_CELLS
    names = min(130.0, 26 + _LETTER * max(len(label) for label in labels))
    cell = min(130.0, (WIDTH - names) / len(labels))
    height = min(cell, 60.0)
    top, slanted = _heading(labels, cell)
    parts = [text_at(0, 12, "is ↓  taken for →", "start")]
    for place, label in enumerate(labels):
        x, y = names + (place + 0.5) * cell, top + (place + 0.5) * height
        parts.append(_column_name(x, top - 8, label, cell, slanted))
        parts.append(_named(names - 10, y + 4, label, "end", names - 16))
    for row, (label, found) in enumerate(zip(labels, counts, strict=True)):
        total = sum(found)
        for column, count in enumerate(found):
            box = (names + column * cell, top + row * height, cell, height)
            words = f"{label} taken for {labels[column]}: {count} of {total}"
            parts += _cell(box, count, count / total if total else None, words, roomy)
    return svg(title, WIDTH, int(top + height * len(labels)) + 1, parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The part of [0, 1] that is shown, with air."""
    air = max(max(values) - min(values), 0.05) * 0.1
    return max(0.0, min(values) - air), min(1.0, max(values) + air)


def _row(row: Row, y: float, ends: tuple[float, float] | None, middle: float | None) -> list[str]:
    style = "faint" if row.faint else "main"
    parts = [_named(_NAMES - 12, y + (4 if not row.note else -2), row.label, "end", _NAMES - 16)]
    if row.note:
        parts.append(text_at(_NAMES - 12, y + 11, _cut(row.note, _NAMES - 16), "end", "tick small"))
    if row.value is None or middle is None:
        return [*parts, text_at(WIDTH - _VALUES + 10, y + 4, "no value", "start")]
    interval = ""
    if ends is not None:
        low, high = ends
        parts.append(f'<line class="whisker {style}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        interval = f"{row.low:.3f} to {row.high:.3f}"
    said = escape(f"{row.label}: {row.value:.3f}{', interval ' + interval if interval else ''}")
    parts.append(f'<circle class="dot {style}" cx="{middle:.1f}" cy="{y:.1f}" r="5"><title>{said}</title></circle>')
    parts.append(text_at(WIDTH - _VALUES + 10, y + (4 if not interval else -2), f"{row.value:.3f}", "start", "value"))
    return [*parts, text_at(WIDTH - _VALUES + 10, y + 11, interval, "start", "tick small")] if interval else parts


def _heading(labels: Sequence[str], cell: float) -> tuple[float, bool]:
    """Height above a matrix, and whether the columns' names are slanted as they do not fit level."""
    longest = max(len(label) for label in labels) * _LETTER
    if longest <= cell - 8:
        return 34.0, False
    return 30 + 0.72 * min(longest, 110.0), True


def _column_name(x: float, y: float, label: str, cell: float, slanted: bool) -> str:
    if not slanted:
        return _named(x, y, label, "middle", cell)
    shown = escape(_cut(label, 110))
    turn = f"rotate(-45 {x:.1f} {y:.1f})"
    return (
        f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="start" transform="{turn}">{shown}'
        f"<title>{escape(label)}</title></text>"
    )


def _cell(
    box: tuple[float, float, float, float], count: int, share: float | None, words: str, roomy: bool
) -> list[str]:
    x, y, width, height = box
    shade = share or 0.0
    tone = "over" if shade > 0.72 else "under"
    middle, centre = x + width / 2, y + height / 2
    place = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}"'
    opacity = f"{0.04 + 0.9 * shade:.3f}"
    parts = [f'<rect class="cell" {place} rx="3" fill-opacity="{opacity}"><title>{escape(words)}</title></rect>']
    if not roomy:
        fits = width >= 9 + _LETTER * len(f"{count}")
        return [*parts, text_at(middle, centre + 4, f"{count}", "middle", f"cell {tone}")] if count and fits else parts
    parts.append(text_at(middle, centre - 1, f"{count:,}", "middle", f"cell {tone} count"))
    percent = NOTHING if share is None else f"{100 * share:.0f} %"
    return [*parts, text_at(middle, centre + 15, percent, "middle", f"cell {tone}")]


def _named(x: float, y: float, label: str, anchor: str, width: float) -> str:
    """A name cut to ``width`` pixels, whole in its tooltip."""
    shown = _cut(label, width)
    if shown == label:
        return text_at(x, y, label, anchor, "name")
    return (
        f'<text class="name" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}'
        f"<title>{escape(label)}</title></text>"
    )


def _cut(text: str, width: float) -> str:
    most = max(1, math.floor(width / _LETTER))
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"

"""Charts as SVG text: pure functions of numbers, coloured by the page's own variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 520, 240
SQUARE = (420, 400)
"""Width and height of a chart whose axes are both shares."""

SERIES = tuple(f"s{number}" for number in range(8))
"""Classes of strokes that can be told apart."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 34


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: its name, read out with the chart.
        points: (x, y), x ascending; points that are not finite are left out.
        style: class of the stroke: "main", "faint", or one of `SERIES`.
        dots: whether each point is marked.
        weights: share of the examples in each point, 0 to 1, which its dot's area shows; () makes all dots equal.
    """

    label: str
    points: Sequence[Point]
    style: str = "main"
    dots: bool = False
    weights: Sequence[float] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with: the base model's score, a bound. ``style``: "base", "good" or "bound"."""

    label: str
    value: float
    style: str = "base"


@dataclass(frozen=True)
class Mark:
    """A point to point at, with its name beside it: the operating point, say."""

    label: str
    x: float
    y: float
    style: str = "main"


@dataclass(frozen=True)
class Frame:
    """Maps values to pixels of the plot."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int = WIDTH
    height: int = HEIGHT
    top: int = _TOP

    @property
    def right(self) -> int:
        """Pixel of the plot's right end."""
        return self.width - _RIGHT

    @property
    def bottom(self) -> int:
        """Pixel of the plot's lower end."""
        return self.height - _BOTTOM

    def x(self, value: float) -> float:
        """Pixel of a horizontal value."""
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        """Pixel of a vertical value; larger is higher."""
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    levels: Sequence[Level] = (),
    best: float | None = None,
    from_zero: bool = False,
    x_label: str = "step",
) -> str:
    """Return an SVG of ``lines`` with levels to compare with and the best step marked; "" where there is no point.

    Args:
        title: what a screen reader says first.
        lines: the curves.
        levels: horizontal lines, each named at its right end.
        best: x of the chosen checkpoint.
        from_zero: whether the vertical axis begins at 0, for figures whose 0 means something.
        x_label: what x counts.
    """
    drawn = [replace(line, points=_finite(line.points)) for line in lines]
    points = [point for line in drawn for point in line.points]
    if not points:
        return ""
    heights = [y for _, y in points] + [level.value for level in levels if math.isfinite(level.value)]
    frame = _frame([x for x, _ in points], heights + [0.0] * from_zero)
    parts = [*_axes(frame, x_label), *_best(frame, best)]
    parts += [part for level in levels for part in _level(frame, level)]
    parts += [part for line in drawn for part in _line(frame, line)]
    return svg(title, WIDTH, HEIGHT, parts)


def share_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    diagonal: str = "",
    marks: Sequence[Mark] = (),
) -> str:
    """Return an SVG whose axes both go from 0 to 1: ROC, precision and recall, reliability; "" where there is no line.

    Args:
        title: what a screen reader says first.
        lines: the curves; points within [0, 1].
        x_label: what the horizontal share is of.
        y_label: what the vertical share is of.
        diagonal: name of the line y = x, drawn to compare with; "" draws none.
        marks: points to point at.
    """
    drawn = [replace(line, points=_finite(line.points)) for line in lines]
    if not any(line.points for line in drawn):
        return ""
    frame = Frame(0.0, 1.0, 0.0, 1.0, *SQUARE, top=26)
    parts = _axes(frame, x_label)
    parts.append(text_at(_LEFT - 30, 13, y_label, "start"))
    if diagonal:
        ends = f'x1="{frame.x(0):.1f}" y1="{frame.y(0):.1f}" x2="{frame.x(1):.1f}" y2="{frame.y(1):.1f}"'
        parts.append(f'<line class="level base" {ends}><title>{escape(diagonal)}</title></line>')
    parts += [part for line in drawn for part in _line(frame, line)]
    parts += [part for mark in marks for part in _mark(frame, mark)]
    return svg(title, *SQUARE, parts)


def svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    """Return the SVG of parts that are escaped already; ``title`` is escaped here."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def smoothed(points: Sequence[Point], half_life: float) -> list[Point]:
    """Return the running mean in which a point counts half as much ``half_life`` points on, unbiased."""
    decay = 0.5 ** (1.0 / half_life)
    total = weight = 0.0
    curve: list[Point] = []
    for x, y in _finite(points):
        total, weight = total * decay + y, weight * decay + 1.0
        curve.append((x, total / weight))
    return curve


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _frame(x_values: Sequence[float], y_values: Sequence[float]) -> Frame:
    """The range of all that is drawn, with air above and below; no air below a lowest value of 0."""
    low, high = min(y_values), max(y_values)
    air = (high - low) * 0.12 or max(abs(high), 1e-3) * 0.1
    x_low, x_high = min(0.0, *x_values), max(x_values)
    return Frame(x_low, x_high if x_high > x_low else x_low + 1, low if low == 0 else low - air, high + air)


def _axes(frame: Frame, x_label: str) -> list[str]:
    parts: list[str] = []
    for value in ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text_at(_LEFT - 8, y + 4, f"{value:g}", "end"))
    steps = ticks(frame.x_low, frame.x_high, 6)
    parts += [text_at(frame.x(value), frame.bottom + 17, f"{value:g}", "middle") for value in steps]
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{frame.right}" y1="{frame.bottom}" y2="{frame.bottom}"/>')
    parts.append(text_at(frame.right, frame.height - 3, x_label, "end"))
    return parts


def _mark(frame: Frame, mark: Mark) -> list[str]:
    if not (math.isfinite(mark.x) and math.isfinite(mark.y)):
        return []
    x, y = frame.x(mark.x), frame.y(mark.y)
    anchor, shift = ("end", -10) if x > frame.width * 0.6 else ("start", 10)
    down = 18 if y < frame.height / 2 else -10
    ring = f'<circle class="mark {escape(mark.style)}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    return [ring, text_at(x + shift, y + down, mark.label, anchor, "label named")] if mark.label else [ring]


def _best(frame: Frame, best: float | None) -> list[str]:
    if best is None or not frame.x_low <= best <= frame.x_high:
        return []
    x = frame.x(best)
    anchor, shift = ("end", -6) if x > WIDTH / 2 else ("start", 6)
    line = f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    return [line, text_at(x + shift, _TOP + 9, f"chosen, {best:g}", anchor, "label")]


def _level(frame: Frame, level: Level) -> list[str]:
    if not math.isfinite(level.value):
        return []
    y = frame.y(level.value)
    line = f'<line class="level {escape(level.style)}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return [line, text_at(_LEFT + 6, y - 5, level.label, "start", f"label {escape(level.style)}")]


def _line(frame: Frame, line: Line) -> list[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [
        f'<polyline class="line {escape(line.style)}" points="{joined}"><title>{escape(line.label)}</title></polyline>'
    ]
    if line.dots or len(places) == 1:
        sizes = [2.5 + 9 * math.sqrt(weight) for weight in line.weights] or [4.0] * len(places)
        values = zip(places, line.points, sizes, strict=True)
        parts += [
            f'<circle class="dot {escape(line.style)}" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}">'
            f"<title>{escape(line.label)} at {step:g}: {value:.4g}</title></circle>"
            for (x, y), (step, value), size in values
        ]
    return parts


def text_at(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    """Return a text of an SVG, escaped; ``anchor`` is "start", "middle" or "end"."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

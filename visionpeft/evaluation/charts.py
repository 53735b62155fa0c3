"""Line charts as SVG text: pure functions of numbers, coloured by the page's own variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 34


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: its name, read out with the chart.
        points: (x, y), x ascending; points that are not finite are left out.
        style: class of the stroke: "main", "faint".
        dots: whether each point is marked.
    """

    label: str
    points: Sequence[Point]
    style: str = "main"
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with: the base model's score, a bound. ``style``: "base", "good" or "bound"."""

    label: str
    value: float
    style: str = "base"


@dataclass(frozen=True)
class Frame:
    """Maps values to pixels of the plot."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Pixel of a horizontal value."""
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Pixel of a vertical value; larger is higher."""
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)


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
    drawn = [Line(line.label, _finite(line.points), line.style, line.dots) for line in lines]
    points = [point for line in drawn for point in line.points]
    if not points:
        return ""
    heights = [y for _, y in points] + [level.value for level in levels if math.isfinite(level.value)]
    frame = _frame([x for x, _ in points], heights + [0.0] * from_zero)
    parts = [*_axes(frame, x_label), *_best(frame, best)]
    parts += [part for level in levels for part in _level(frame, level)]
    parts += [part for line in drawn for part in _line(frame, line)]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
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
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts: list[str] = []
    for value in ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:g}", "end"))
    steps = ticks(frame.x_low, frame.x_high, 6)
    parts += [_text(frame.x(value), bottom + 17, f"{value:g}", "middle") for value in steps]
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text(right, HEIGHT - 3, x_label, "end"))
    return parts


def _best(frame: Frame, best: float | None) -> list[str]:
    if best is None or not frame.x_low <= best <= frame.x_high:
        return []
    x = frame.x(best)
    anchor, shift = ("end", -6) if x > WIDTH / 2 else ("start", 6)
    line = f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
    return [line, _text(x + shift, _TOP + 9, f"chosen, {best:g}", anchor, "label")]


def _level(frame: Frame, level: Level) -> list[str]:
    if not math.isfinite(level.value):
        return []
    y = frame.y(level.value)
    line = f'<line class="level {escape(level.style)}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return [line, _text(_LEFT + 6, y - 5, level.label, "start", f"label {escape(level.style)}")]


def _line(frame: Frame, line: Line) -> list[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [
        f'<polyline class="line {escape(line.style)}" points="{joined}"><title>{escape(line.label)}</title></polyline>'
    ]
    if line.dots or len(places) == 1:
        values = zip(places, line.points, strict=True)
        parts += [
            f'<circle class="dot {escape(line.style)}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
            f"<title>{escape(line.label)} at {step:g}: {value:.4g}</title></circle>"
            for (x, y), (step, value) in values
        ]
    return parts


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

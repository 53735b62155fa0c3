"""What every report page is made of: its template, pictures inside it, figures in words."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visionpeft.errors import FileFormatError

LARGEST_SIDE = 512
NOTHING = "\N{EN DASH}"
"""Where a table has no value."""


@dataclass(frozen=True)
class Tile:
    """A headline figure: its name, its value, what it means, and where it lies between two ends.

    Attributes:
        label: its name.
        value: as text.
        meaning: a sentence or two.
        share: its place between the ends, 0 to 1; None draws no gauge.
        ends: what 0 and 1 stand for.
        good: whether a bound that it has is kept.
        low: lower end of its interval, as such a place; None where it has none.
        high: upper end.
        interval: the interval in words, "" where it has none.
    """

    label: str
    value: str
    meaning: str
    share: float | None = None
    ends: tuple[str, str] = ("", "")
    good: bool = True
    low: float | None = None
    high: float | None = None
    interval: str = ""


@dataclass(frozen=True)
class Chart:
    """A curve with its name and a sentence about how to read it; ``legend`` is (style, label) of its lines."""

    title: str
    meaning: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


def fill_template(name: str, **values: Any) -> str:
    """Return a page of ``templates/`` as HTML; every text is escaped, and a value that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("visionpeft.evaluation", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": spell_bytes,
        "seconds": spell_seconds,
        "number": spell_number,
        "figure": spell_figure,
    }
    return environment.get_template(name).render(**values)


def drawn(chart: Chart) -> tuple[Chart, Any]:
    """Return a chart and its SVG as markup that a template takes as it is: charts.py has escaped its texts."""
    from markupsafe import Markup

    return chart, Markup(chart.svg)  # noqa: S704


def data_uri(path: Path, side: int | None = LARGEST_SIDE) -> str:
    """Return a picture file as ``data:`` text: see `picture_uri`.

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
    return picture_uri(picture, side)


def picture_uri(picture: Image.Image, side: int | None = LARGEST_SIDE) -> str:
    """Return a picture as ``data:`` text: PNG as it is, without its metadata; JPEG where it had to be made smaller.

    Args:
        picture: of any size.
        side: pixels of the longer side at most; None leaves it.
    """
    kind, plain = "png", picture.convert("RGB")
    if side is not None and max(plain.size) > side:
        kind = "jpeg"
        plain.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    plain.save(buffer, kind.upper(), optimize=True, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def spell_bytes(size: float) -> str:
    """Return "1.4 MB" for 1,400,000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def spell_seconds(seconds: float) -> str:
    """Return "2 min 5 s" for 125, "0.4 s" for 0.4."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


CAUTIONS = {
    "train": "they are the {things} that it learned from",
    "validation": "the best step and the thresholds were chosen on them",
    "all": "it learned from some of them",
}
"""Which part of a run's data was measured -> why its figures are better than those of new data."""


def caution(part: str, things: str = "pictures") -> str:
    """Return a sentence about figures that are not of test pictures (or other ``things``); "" for those."""
    return f" These figures are too good: {CAUTIONS[part].format(things=things)}." if part in CAUTIONS else ""


def spell_figure(value: float | None) -> str:
    """Return a share with three digits, "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


def spell_number(value: Any) -> str:
    """Return numbers with four significant digits or grouped by thousands, lists with commas, else as it is."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

"""The report on interference as a picture: blocks downwards in the model's order, figures across."""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from visionpeft.adapters.blend_weights import block_of
from visionpeft.evaluation.interference import Interference, LayerReport, Pair

_CELL, _ROW, _TOP, _EDGE = 64, 18, 60, 12
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_LOW, _HIGH = (255, 247, 236), (127, 0, 0)
FIGURES: dict[str, tuple[Callable[[Pair], float], Callable[[float], float]]] = {
    "writes": (lambda pair: pair.written, lambda value: value),
    "reads": (lambda pair: pair.read, lambda value: value),
    "conflict": (lambda pair: pair.conflict, lambda value: value),
    "ratio": (lambda pair: pair.ratio, lambda value: min(1.0, abs(log2(max(value, 1e-9))) / 4)),
}
"""Column -> (its value of a pair, how dark that is in [0, 1]); a ratio of 1 is light, 16 and 1/16 are darkest."""


def heat_map(report: Interference) -> Image.Image:
    """Return the map: one row a block, its figures the means over its layers; dark is trouble."""
    blocks: dict[str, list[LayerReport]] = {}
    for layer in report.layers:
        blocks.setdefault(block_of(layer.place), []).append(layer)
    font = ImageFont.load_default(11)
    names = [*FIGURES, *(f"lost: {method}" for method in report.layers[0].lost)]
    left = 2 * _EDGE + max(int(font.getlength(block)) for block in blocks)
    legend = _legend(report)
    width = max(left + _CELL * len(names), *(_EDGE + int(font.getlength(line)) for line in legend)) + _EDGE
    below = _TOP + _ROW * len(blocks) + _EDGE
    picture = Image.new("RGB", (width, below + _ROW * len(legend) + _EDGE), _PAPER)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(legend):
        draw.text((_EDGE, below + _ROW * row), line, fill=_INK, font=font)
    for column, name in enumerate(names):
        for line, word in enumerate(name.split(" ")[:2]):
            draw.text((left + column * _CELL + 4, 22 + 16 * line), word[:11], fill=_INK, font=font)
    for row, (block, layers) in enumerate(blocks.items()):
        top = _TOP + row * _ROW
        draw.text((_EDGE, top + 2), block, fill=_INK, font=font)
        for column, (value, dark) in enumerate(_values(layers)):
            box = left + column * _CELL, top, left + (column + 1) * _CELL - 2, top + _ROW - 2
            draw.rectangle(box, fill=_colour(dark))
            draw.text((box[0] + 16, top + 2), f"{value:.2f}", fill=_PAPER if dark > 0.5 else _INK, font=font)
    return picture


def _legend(report: Interference) -> list[str]:
    """Whose map it is, what its columns are, and the advice, a line each."""
    adapters = dict.fromkeys(
        name for layer in report.layers for pair in layer.pairs for name in (pair.first, pair.second)
    )
    return [
        f"{', '.join(adapters)}: means of every two, by block; dark is trouble",
        "writes, reads: the share of outputs, inputs that is the same · conflict: of signs that differ, 0.5 is chance",
        f"ratio: of their norms · lost: what rank {report.rank} takes of each blend's energy",
        report.advice,
    ]


def save_heat_map(report: Interference, path: str | Path) -> Path:
    """Write the map as a PNG."""
    heat_map(report).save(path, format="PNG")
    return Path(path)


def _values(layers: list[LayerReport]) -> list[tuple[float, float]]:
    pairs = [pair for layer in layers for pair in layer.pairs]
    found: list[tuple[float, float]] = []
    for value, dark in FIGURES.values():
        mean = sum(value(pair) for pair in pairs) / len(pairs)
        found.append((mean, dark(mean)))
    for method in layers[0].lost:
        mean = sum(layer.lost[method] for layer in layers) / len(layers)
        found.append((mean, mean))
    return found


def _colour(dark: float) -> tuple[int, int, int]:
    share = max(0.0, min(1.0, dark))
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(_LOW, _HIGH, strict=True))
    return red, green, blue

"""Boxes on photographs: told apart by colour, by the kind of line and by words, so that no eye depends on one of them.

Colours are of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which colour-blind people tell apart; each
line lies on a wider dark one, so that it is seen on any ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from visionpeft.data.detection.scenes import Scene
from visionpeft.evaluation.detection.detections import Detections
from visionpeft.evaluation.detection.matching import matched

Colour = tuple[int, int, int]
Corners = tuple[float, float, float, float]
Stroke = Literal["solid", "dashed", "corners"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE: tuple[Colour, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
"""One a class, in order; they come again where there are more classes."""

SMALLEST_SIDE = 640
"""Pixels of the longer side under which a picture is enlarged, so that words can be read on it."""

_DARK, _LIGHT = (20, 24, 30), (255, 255, 255)


@dataclass(frozen=True)
class Mark:
    """How one kind of box looks."""

    word: str
    colour: Colour
    stroke: Stroke


HIT = Mark("hit", (86, 180, 233), "solid")
MISS = Mark("miss", (240, 228, 66), "dashed")
ALARM = Mark("false alarm", (213, 94, 0), "corners")
MARKS = (HIT, MISS, ALARM)


@dataclass(frozen=True)
class Drawn:
    """A box to draw, the words at it ("" for none), and its confidence (0 for an object that was not found)."""

    box: Corners
    mark: Mark
    text: str
    score: float = 0.0


def outcomes(scene: Scene, found: Detections, labels: Sequence[str], threshold: float) -> list[Drawn]:
    """Return what to draw of one picture: hits, then false alarms, then misses; crowds are left out."""
    kept = found.above(threshold)
    match = matched(scene, kept)
    drawn: list[Drawn] = []
    for hit, box, score, label in zip(match.hits, kept.boxes, kept.scores, kept.labels.tolist(), strict=True):
        if hit > -2:
            mark = HIT if hit >= 0 else ALARM
            drawn.append(Drawn(corners(box), mark, f"{labels[label]} {score:.2f}", float(score)))
    drawn.sort(key=lambda item: item.mark is ALARM)
    missed = ~match.found & ~scene.crowd
    pairs = zip(scene.boxes[missed], scene.labels[missed].tolist(), strict=True)
    return drawn + [Drawn(corners(box), MISS, labels[int(label)]) for box, label in pairs]


def predictions(found: Detections, labels: Sequence[str]) -> list[Drawn]:
    """Return what to draw where nothing is known but what was found: a colour a class, with its score."""
    parts = zip(found.boxes, found.scores, found.labels.tolist(), strict=True)
    marks = [Mark(label, PALETTE[k % len(PALETTE)], "solid") for k, label in enumerate(labels)]
    return [Drawn(corners(box), marks[k], f"{labels[k]} {score:.2f}", float(score)) for box, score, k in parts]


def corners(box: NDArray[np.float32]) -> Corners:
    """Return a box [4] as four numbers."""
    left, top, right, bottom = (float(value) for value in box)
    return left, top, right, bottom


def annotated(image: Image.Image, drawn: Sequence[Drawn], *, side: int = SMALLEST_SIDE) -> Image.Image:
    """Return ``image`` with boxes on it, enlarged where its longer side is under ``side`` pixels.

    Words stand above their box, or where that place is taken or outside the picture, within or below it.
    """
    scale = max(1.0, side / max(image.size))
    sheet = image.convert("RGB")
    if scale > 1:
        sheet = sheet.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pen, line = ImageDraw.Draw(sheet), max(2, round(max(sheet.size) / 400))
    boxes = [tuple(value * scale for value in item.box) for item in drawn]
    for item, box in zip(drawn, boxes, strict=True):
        _outline(pen, (box[0], box[1], box[2], box[3]), item.mark, line)
    _tags(pen, drawn, boxes, sheet.size)
    return sheet


def legend(marks: Sequence[Mark], width: int, counts: Sequence[int] = ()) -> Image.Image:
    """Return a strip ``width`` pixels wide that shows what each kind of box means, with how many there are."""
    font, height = ImageFont.load_default(18), 36
    strip = Image.new("RGB", (width, height), _LIGHT)
    pen, x = ImageDraw.Draw(strip), 12
    for number, mark in enumerate(marks):
        _outline(pen, (x, 8, x + 30, 28), mark, 2)
        text = f"{mark.word}: {counts[number]}" if counts else mark.word
        pen.text((x + 40, height / 2), text, fill=_DARK, font=font, anchor="lm")
        x += 40 + round(font.getlength(text)) + 28
    return strip


def _outline(pen: ImageDraw.ImageDraw, box: Corners, mark: Mark, line: int) -> None:
    """A dark wider line first, the coloured one on it."""
    parts = _strokes(box, mark.stroke, line)
    for colour, extra in ((_DARK, 1), (mark.colour, 0)):
        for left, top, right, bottom in parts:
            pen.rectangle((left - extra, top - extra, right + extra, bottom + extra), fill=colour)


def _strokes(box: Corners, stroke: Stroke, line: int) -> list[tuple[int, int, int, int]]:
    """The bars (both corners inside) that make the frame of ``box``."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right - line, left + line), max(bottom - line, top + line)
    bars: list[tuple[int, int, int, int]] = []
    for start, end in _spans(left, right + line, stroke, line):
        bars += [(start, y, end - 1, y + line - 1) for y in (top, bottom)]
    for start, end in _spans(top, bottom + line, stroke, line):
        bars += [(x, start, x + line - 1, end - 1) for x in (left, right)]
    return bars


def _spans(start: int, end: int, stroke: Stroke, line: int) -> list[tuple[int, int]]:
    if stroke == "solid":
        return [(start, end)]
    if stroke == "corners":
        arm = min(max(4 * line, (end - start) // 4), (end - start) // 2)
        return [(start, start + arm), (end - arm, end)]
    count = max(2, round((end - start) / (7 * line)))
    step = (end - start) / (count - 0.4)  # dashes of 0.6 of a step, the last one ends at the corner
    return [(round(start + i * step), min(round(start + (i + 0.6) * step), end)) for i in range(count)]


def _tags(
    pen: ImageDraw.ImageDraw, drawn: Sequence[Drawn], boxes: Sequence[tuple[float, ...]], size: tuple[int, int]
) -> None:
    font = ImageFont.load_default(max(13, min(20, round(max(size) / 48))))
    taken: list[Corners] = []
    for item, box in zip(drawn, boxes, strict=True):
        if not item.text:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), item.text, font=font)
        place = _free_place(box, (right - left + 6, bottom - top + 5), size, taken)
        taken.append(place)
        pen.rectangle(place, fill=item.mark.colour, outline=_DARK)
        ink = _DARK if _light(item.mark.colour) else _LIGHT
        pen.text((place[0] + 3 - left, place[1] + 3 - top), item.text, fill=ink, font=font)


def _free_place(
    box: tuple[float, ...], extent: tuple[float, float], size: tuple[int, int], taken: Sequence[Corners]
) -> Corners:
    """Where words of ``extent`` stand: the first free place at the box or farther above it, else the first of all."""
    width, height = extent
    left, top, right, bottom = box
    spots = [
        (left, top - height), (right - width, top - height), (left, top), (right - width, top),
        (left, bottom), (left, bottom - height), *((left, top - line * height) for line in (2, 3, 4)),
    ]  # fmt: skip
    places = [_within(x, y, width, height, size) for x, y in spots]
    return next((place for place in places if not any(_touch(place, other) for other in taken)), places[0])


def _within(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Corners:
    x, y = min(max(x, 0), size[0] - width - 1), min(max(y, 0), size[1] - height - 1)
    return x, y, x + width, y + height


def _touch(first: Corners, second: Corners) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _light(colour: Colour) -> bool:
    """Whether dark ink is read better on it: by relative luminance."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2

"""Pictures with what a model says of them: a caption below, or boxes with their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from visionpeft.inference.grid import wrap

_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_COLOURS = (
    (214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 190, 207), (227, 119, 194),
    (140, 86, 75), (188, 189, 34), (127, 127, 127),
)  # fmt: skip
_SMALLEST = 192  # pixels of the longer side under which words do not fit


class Mark(NamedTuple):
    """A box (x_min, y_min, x_max, y_max) in pixels, its words, and the number of its class, which has a colour."""

    box: tuple[float, float, float, float]
    words: str
    colour: int


def captioned(image: Image.Image, words: str) -> Image.Image:
    """Return the picture with words below it, enlarged by a whole factor where it is small."""
    shown = _enlarged(image)[0]
    font = ImageFont.load_default(size=max(14, shown.width // 16))
    text = wrap(words, font, shown.width - 8)
    height = int(ImageDraw.Draw(shown).multiline_textbbox((0, 0), text, font)[3]) + 12
    sheet = Image.new("RGB", (shown.width, shown.height + height), _PAPER)
    sheet.paste(shown, (0, 0))
    ImageDraw.Draw(sheet).multiline_text((4, shown.height + 4), text, _INK, font)
    return sheet


def boxed(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """Return the picture with boxes and their words, enlarged by a whole factor where it is small."""
    shown, factor = _enlarged(image)
    draw = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=max(12, shown.width // 40))
    line = max(2, shown.width // 250)
    for mark in marks:
        left, top, right, bottom = (side * factor for side in mark.box)
        colour = _COLOURS[mark.colour % len(_COLOURS)]
        draw.rectangle((left, top, max(right, left), max(bottom, top)), outline=colour, width=line)
        _, _, width, height = draw.textbbox((0, 0), mark.words, font)
        above = top - height - 4 if top >= height + 4 else top
        draw.rectangle((left, above, left + width + 4, above + height + 4), fill=colour)
        draw.text((left + 2, above + 1), mark.words, _PAPER, font)
    return shown


def _enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    factor = max(1, -(-_SMALLEST // max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST), factor

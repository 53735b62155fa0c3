"""One labelled picture that tells what a run did: the real pictures, before and after."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

_CELL, _GAP, _MARGIN = 192, 10, 24
_PAPER, _INK, _QUIET, _FRAME = (255, 255, 255), (24, 32, 42), (98, 108, 120), (222, 226, 231)
_TITLE, _CAPTION = 19, 14


def before_after_sheet(
    real: Sequence[Image.Image],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    titles: tuple[str, str, str] = ("Before", "After", "Learned from"),
    cell: int = _CELL,
) -> Image.Image:
    """Return a sheet of three rows: the base model's pictures, the adapter's for the same prompts, the real ones.

    Args:
        real: the pictures that were learned from; as many as fit a row are shown.
        before: pictures of the base model, one a caption.
        after: pictures with the adapter, one a caption.
        captions: the prompts, written under the "after" row; long ones are broken over three lines at most.
        titles: the rows' names.
        cell: side of a picture, in pixels; smaller pictures are scaled up, others are cut square.

    Raises:
        ValueError: no pictures, or not as many before, after and captions.
    """
    if not real or not captions or not len(before) == len(after) == len(captions):
        raise ValueError(
            f"expected real pictures and as many before as after as captions, got {len(real)} real, {len(before)} "
            f"before, {len(after)} after, {len(captions)} captions"
        )
    columns = max(len(captions), min(len(real), 5))
    words = [_broken(caption, cell, 3) for caption in captions]
    return _drawn([before, after, real[:columns]], titles, words, columns, cell)


def _drawn(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], captions: list[list[str]], columns: int, cell: int
) -> Image.Image:
    title_height, line = _TITLE + 16, _CAPTION + 5
    caption_height = max(len(lines) for lines in captions) * line + 8
    row_height = title_height + cell + 14
    width = 2 * _MARGIN + columns * cell + (columns - 1) * _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + len(rows) * row_height + caption_height - 14), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for number, (title, pictures) in enumerate(zip(titles, rows, strict=True)):
        draw.text((_MARGIN, top), title, fill=_INK, font=ImageFont.load_default(_TITLE))
        for column, picture in enumerate(pictures):
            _paste(sheet, picture, _MARGIN + column * (cell + _GAP), top + title_height, cell)
        top += row_height
        if number == 1:
            _write(draw, captions, top - 6, cell)
            top += caption_height
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, x: int, y: int, cell: int) -> None:
    square = ImageOps.fit(picture.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
    sheet.paste(square, (x, y))
    ImageDraw.Draw(sheet).rectangle((x, y, x + cell - 1, y + cell - 1), outline=_FRAME)


def _write(draw: ImageDraw.ImageDraw, captions: list[list[str]], top: int, cell: int) -> None:
    font = ImageFont.load_default(_CAPTION)
    for column, lines in enumerate(captions):
        for number, text in enumerate(lines):
            place = (_MARGIN + column * (cell + _GAP), top + number * (_CAPTION + 5))
            draw.text(place, text, fill=_QUIET, font=font)


def _broken(text: str, width: int, most: int) -> list[str]:
    """Break into lines of at most ``width`` pixels; what is left after ``most`` lines becomes an ellipsis."""
    font = ImageFont.load_default(_CAPTION)
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, width, font))
    if len(lines) > most:
        lines = [*lines[: most - 1], _cut(f"{lines[most - 1]} …", width, font)]
    return lines


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Shorten to ``width`` pixels, with an ellipsis where something is left out."""
    if font.getlength(text) <= width:
        return text
    kept = text.rstrip("… ")
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept}…"

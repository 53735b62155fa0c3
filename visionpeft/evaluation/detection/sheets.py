"""Which pictures went worst, and single hits, misses and false alarms, as pictures with words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from visionpeft.evaluation.detection.detections import Evaluation
from visionpeft.evaluation.detection.draw import MARKS, Drawn, annotated, legend, outcomes
from visionpeft.evaluation.detection.matching import matched

Pictures = Callable[[int], Image.Image]

_CELL, _GAP, _CAPTION = 640, 16, 32
_INK, _PAPER = (24, 32, 42), (255, 255, 255)


@dataclass(frozen=True)
class PictureScore:
    """How one picture went.

    Attributes:
        index: of the picture within its set.
        name: of the picture.
        hits: objects found.
        misses: objects not found.
        alarms: detections where nothing is.
    """

    index: int
    name: str
    hits: int
    misses: int
    alarms: int

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + misses + alarms); 1 where there is nothing and nothing was seen."""
        whole = 2 * self.hits + self.misses + self.alarms
        return 2 * self.hits / whole if whole else 1.0


@dataclass(frozen=True)
class Case:
    """One hit, miss or false alarm: what to draw, and the index of its picture."""

    index: int
    drawn: Drawn


def picture_scores(evaluation: Evaluation, threshold: float) -> list[PictureScore]:
    """Return how each picture went, the worst first: by F1, then by the number of errors."""
    scores: list[PictureScore] = []
    for index, (scene, found) in enumerate(zip(evaluation.scenes, evaluation.detections, strict=True)):
        match = matched(scene, found.above(threshold))
        hits, alarms = int((match.hits >= 0).sum()), int((match.hits == -1).sum())
        scores.append(PictureScore(index, scene.name, hits, int((~scene.crowd).sum()) - hits, alarms))
    return sorted(scores, key=lambda score: (score.f1, -score.misses - score.alarms, score.index))


def worst_sheet(
    evaluation: Evaluation, pictures: Pictures, threshold: float, *, count: int = 6, columns: int = 2
) -> Image.Image:
    """Return the ``count`` pictures that went worst with hits, misses and false alarms drawn, and a legend.

    Args:
        evaluation: what is there and what was found.
        pictures: returns the picture of an index.
        threshold: from which a detection counts.
        count: of pictures, at least 1.
        columns: of the sheet.
    """
    worst = picture_scores(evaluation, threshold)[:count]
    cells = [_cell(evaluation, pictures, score, threshold) for score in worst]
    totals = [sum(getattr(score, key) for score in worst) for key in ("hits", "misses", "alarms")]
    return stacked(cells, columns, legend(MARKS, _sheet_width(min(columns, len(cells))), totals))


def stacked(cells: Sequence[Image.Image], columns: int, head: Image.Image) -> Image.Image:
    """Return pictures of one width in ``columns``, under ``head``."""
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (_sheet_width(columns), head.height + _GAP + sum(heights)), _PAPER)
    sheet.paste(head, (0, _GAP // 2))
    top = head.height + _GAP
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            sheet.paste(cell, (_GAP + place * (_CELL + _GAP), top))
        top += height
    return sheet


def _sheet_width(columns: int) -> int:
    return _GAP + columns * (_CELL + _GAP)


def _cell(evaluation: Evaluation, pictures: Pictures, score: PictureScore, threshold: float) -> Image.Image:
    scene, found = evaluation.scenes[score.index], evaluation.detections[score.index]
    drawn = outcomes(scene, found, evaluation.labels, threshold)
    picture = annotated(pictures(score.index), drawn, side=_CELL)
    picture.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (_CELL, picture.height + _CAPTION), _PAPER)
    cell.paste(picture, ((_CELL - picture.width) // 2, 0))
    counted = f"hits {score.hits} · misses {score.misses} · false alarms {score.alarms}"
    _caption(cell, picture.height, score.name, counted)
    return cell


def _caption(cell: Image.Image, top: int, name: str, counted: str) -> None:
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(17)
    pen.text((cell.width, top + 7), counted, fill=_INK, font=font, anchor="ra")
    room = cell.width - font.getlength(counted) - 24
    while len(name) > 4 and font.getlength(name) > room:
        name = f"…{name[2:]}"
    pen.text((0, top + 7), name, fill=_INK, font=font, anchor="la")


def cases(evaluation: Evaluation, threshold: float) -> dict[str, list[Case]]:
    """Return "hits" (the least sure first), "misses" (in order of the pictures) and "alarms" (the surest first)."""
    pairs = zip(evaluation.scenes, evaluation.detections, strict=True)
    every = [
        Case(index, item)
        for index, (scene, found) in enumerate(pairs)
        for item in outcomes(scene, found, evaluation.labels, threshold)
    ]
    hits, misses, alarms = ([case for case in every if case.drawn.mark is mark] for mark in MARKS)
    hits.sort(key=lambda case: case.drawn.score)
    alarms.sort(key=lambda case: -case.drawn.score)
    return {"hits": hits, "misses": misses, "alarms": alarms}


def case_picture(image: Image.Image, case: Case, *, side: int = 224) -> Image.Image:
    """Return the square around a case, three times as wide as its box, with the box on it."""
    left, top, right, bottom = case.drawn.box
    half = min(max(right - left, bottom - top, 24) * 1.5, min(image.size) / 2)
    x = min(max((left + right) / 2, half), image.width - half) - half
    y = min(max((top + bottom) / 2, half), image.height - half) - half
    part = image.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + 2 * half, y + 2 * half))
    scale = side / (2 * half)
    box = ((left - x) * scale, (top - y) * scale, (right - x) * scale, (bottom - y) * scale)
    return annotated(part, [Drawn(box, case.drawn.mark, "")], side=side)

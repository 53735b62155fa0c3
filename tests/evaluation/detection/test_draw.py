from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from visionpeft.data.detection.scenes import Scene
from visionpeft.evaluation.detection.detections import Detections, evaluation_of
from visionpeft.evaluation.detection.draw import (
    ALARM,
    HIT,
    MARKS,
    MISS,
    PALETTE,
    Drawn,
    annotated,
    legend,
    outcomes,
    predictions,
)
from visionpeft.evaluation.detection.sheets import case_picture, cases, picture_scores, worst_sheet

LABELS = ("ant", "bee")
GREY = Image.new("RGB", (640, 480), (128, 128, 128))
BOX = (100.0, 120.0, 300.0, 260.0)


def scene(name="a", boxes=(BOX, (400, 100, 500, 200)), labels=(0, 1), crowd=()):
    return Scene(name, 640, 480, np.array(boxes), np.array(labels), crowd=np.array(crowd, bool))


def found(name="a", rows=((BOX, 0.9, 0), ((20, 300, 90, 400), 0.8, 1), ((400, 100, 500, 200), 0.2, 1))):
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(name, np.array(boxes), np.array(scores), np.array(labels))


def where(image, colour):
    """Corners of all pixels of exactly this colour, and how many there are."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(axis=2))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), len(rows)


def test_hits_misses_and_false_alarms_are_told_apart():
    drawn = outcomes(scene(), found(), LABELS, 0.5)
    assert [(item.mark, item.text) for item in drawn] == [(HIT, "ant 0.90"), (ALARM, "bee 0.80"), (MISS, "bee")]
    assert [item.mark for item in outcomes(scene(), found(), LABELS, 0.1)] == [HIT, HIT, ALARM]
    crowds = outcomes(scene(crowd=(True, True)), found(), LABELS, 0.5)
    assert [item.text for item in crowds] == ["bee 0.80"]
    assert len({mark.colour for mark in MARKS}) == len({mark.stroke for mark in MARKS}) == 3


@pytest.mark.parametrize("mark", MARKS)
def test_a_frame_lies_exactly_on_its_box(mark):
    image = annotated(GREY, [Drawn(BOX, mark, "")])
    assert image.size == GREY.size
    extent, count = where(image, mark.colour)
    assert extent == tuple(map(int, BOX))
    full = where(annotated(GREY, [Drawn(BOX, HIT, "")]), HIT.colour)[1]
    assert count == full if mark is HIT else 0.3 * full < count < 0.75 * full
    assert GREY.getpixel((200, 120)) == (128, 128, 128)


def test_small_pictures_are_enlarged_and_their_boxes_with_them():
    image = annotated(GREY.resize((160, 120)), [Drawn((25, 30, 75, 65), HIT, "")])
    assert image.size == (640, 480)
    assert where(image, HIT.colour)[0] == (100, 120, 300, 260)


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (600, 0, 640, 30), (0, 470, 5, 480), (635, 475, 640, 480)])
def test_words_stay_within_the_picture_and_off_each_other(box):
    one = where(annotated(GREY, [Drawn(box, MISS, "")]), MISS.colour)[1]
    both = [Drawn(box, MISS, "some words"), Drawn(box, MISS, "other words")]
    first = where(annotated(GREY, both[:1]), MISS.colour)[1] - one
    second = where(annotated(GREY, both), MISS.colour)[1] - one
    assert first > 300
    assert second > 1.6 * first


def test_predictions_have_a_colour_a_class():
    drawn = predictions(found(), LABELS)
    assert [item.mark.colour for item in drawn] == [PALETTE[0], PALETTE[1], PALETTE[1]]
    assert [item.text for item in drawn] == ["ant 0.90", "bee 0.80", "bee 0.20"]


def luminance(colour):
    return sum(share * (value / 255) ** 2.2 for share, value in zip((0.2126, 0.7152, 0.0722), colour, strict=True))


def test_marks_differ_in_brightness_too():
    bright = sorted(luminance(mark.colour) for mark in MARKS)
    assert bright[1] / bright[0] > 1.5
    assert bright[2] / bright[1] > 1.5


SET = evaluation_of(
    LABELS,
    [scene("good"), scene("bad"), scene("empty", (), ())],
    [found("good", ((BOX, 0.9, 0), ((400, 100, 500, 200), 0.6, 1))), found("bad"), found("empty", ())],
)


def test_the_worst_pictures_come_first():
    scores = picture_scores(SET, 0.5)
    assert [(s.name, s.hits, s.misses, s.alarms) for s in scores] == [
        ("bad", 1, 1, 1), ("good", 2, 0, 0), ("empty", 0, 0, 0)]  # fmt: skip
    assert [s.f1 for s in scores] == [0.5, 1, 1]


def test_the_sheet_shows_as_many_pictures_as_told():
    asked = []

    def pictures(index):
        asked.append(index)
        return GREY

    sheet = worst_sheet(SET, pictures, 0.5, count=2)
    assert asked == [1, 0]
    assert sheet.width > 2 * 640
    assert all(where(sheet, mark.colour)[1] > 100 for mark in MARKS)
    assert worst_sheet(SET, pictures, 0.5, count=1).width < sheet.width
    assert legend(MARKS, 500).size[0] == 500


def test_cases_are_sorted_and_cut_around_their_boxes():
    groups = cases(SET, 0.5)
    assert [(case.index, case.drawn.text) for case in groups["hits"]] == [
        (0, "bee 0.60"),
        (0, "ant 0.90"),
        (1, "ant 0.90"),
    ]
    assert [case.drawn.text for case in groups["misses"]] == ["bee"]
    assert [case.drawn.text for case in groups["alarms"]] == ["bee 0.80"]
    photograph = GREY.copy()
    photograph.paste((255, 0, 0), (400, 100, 500, 200))
    picture = case_picture(photograph, groups["misses"][0], side=300)
    assert picture.size == (300, 300)
    red = where(picture, (255, 0, 0))[0]
    frame = where(picture, MISS.colour)[0]
    assert frame == (100, 100, 200, 200)
    assert red[0] - frame[0] <= 4
    assert frame[2] - red[2] <= 4

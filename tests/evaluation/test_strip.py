from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.runs import picture
from visionpeft.evaluation.strip import before_after_sheet

PICTURES = [picture(hue) for hue in (0, 60, 120, 180, 240)]


def test_rows_hold_the_pictures_in_order():
    sheet = np.asarray(before_after_sheet(PICTURES, PICTURES[:2], PICTURES[2:4], ["one", "two"], cell=96))
    grounds = [np.asarray(p)[2, 2] for p in PICTURES]
    rows = [[row for row in range(sheet.shape[0]) if (sheet[row, 24 + 4] == ground).all()] for ground in grounds]
    assert min(rows[0]) < min(rows[2]) < max(rows[0])
    assert sheet.shape[1] == 2 * 24 + 2 * 96 + 10 or sheet.shape[1] == 2 * 24 + 5 * 96 + 4 * 10


def test_long_and_hostile_captions_stay_in_their_column():
    long = "a photo of " + "very " * 60 + "longwordwithoutanyspace" * 9
    wide = before_after_sheet(PICTURES, PICTURES[:2], PICTURES[:2], [long, "short"], cell=96)
    short = before_after_sheet(PICTURES, PICTURES[:2], PICTURES[:2], ["short", "short"], cell=96)
    assert wide.width == short.width
    assert wide.height - short.height == 2 * 19


@pytest.mark.parametrize(("real", "before", "captions"), [(0, 1, ["a"]), (1, 2, ["a"]), (1, 0, []), (1, 1, ["a", "b"])])
def test_rows_that_do_not_fit_are_refused(real, before, captions):
    with pytest.raises(ValueError, match="expected real pictures"):
        before_after_sheet(PICTURES[:real], PICTURES[:before], PICTURES[:before], captions)


def test_any_shape_and_mode_of_picture_is_taken():
    tall = PICTURES[0].resize((40, 90)).convert("L")
    sheet = before_after_sheet([tall], [tall], [PICTURES[0].convert("RGBA")], ["x"])
    assert sheet.mode == "RGB"

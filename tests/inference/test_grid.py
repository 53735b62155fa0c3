import numpy as np
import pytest
from PIL import Image, ImageFont

from visionpeft.errors import DataError
from visionpeft.inference.grid import grid, wrap

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def solid(colour, size=(40, 30)):
    return Image.new("RGB", size, colour)


def test_pictures_are_enlarged_by_a_whole_factor_and_placed_in_order():
    rows = [[solid("red"), solid("lime")], [solid("blue")]]
    sheet = np.asarray(grid(rows, smallest=80))
    for colour in COLOURS:
        found = (sheet == colour).all(-1)
        assert found.sum() == 80 * 60
    red, lime, blue = (np.argwhere((sheet == colour).all(-1)).min(0) for colour in COLOURS)
    assert red[0] == lime[0] < blue[0]
    assert red[1] == blue[1] < lime[1]


def test_labels_never_cover_pictures():
    label = "a photo of sks robot on a striped yellow background, at the top left, quite small and far away " * 2
    bare = grid([[solid("red")], [solid("red")]])
    labelled = grid([[solid("red")], [solid("red")]], row_labels=[label, "x"], column_labels=[label], title=label)
    count = [int((np.asarray(sheet) == (255, 0, 0)).all(-1).sum()) for sheet in (bare, labelled)]
    assert count[0] == count[1]
    assert (np.asarray(labelled) == (32, 32, 32)).all(-1).any()


def test_wrapped_lines_fit():
    font = ImageFont.load_default(size=14)
    text = "several words and one_very_long_word_that_is_wider_than_the_line_alone\nnew line"
    lines = wrap(text, font, 100).split("\n")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")


def test_faults():
    with pytest.raises(DataError, match="at least one picture"):
        grid([[]])
    with pytest.raises(DataError, match="1 row labels for 2 rows"):
        grid([[solid("red")], [solid("red")]], row_labels=["a"])

"""Background colours and places read from plain pictures whose truth is known."""

import numpy as np
import pytest

from visionpeft.errors import DataError
from visionpeft.evaluation.scene import COLOURS, background_colour, foreground, object_position, position_word, to_lab


def canvas(colour: tuple[int, int, int], size: int = 96) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


@pytest.mark.parametrize("name", COLOURS)
def test_names_its_own_colours_plain_striped_and_noisy(name: str) -> None:
    picture, rng = canvas(COLOURS[name]), np.random.default_rng(0)
    picture[30:60, 30:60] = 255 - np.array(COLOURS[name])
    assert background_colour(picture) == name
    noisy = (picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    assert background_colour(noisy) == name
    towards = 255 if name in ("black", "blue", "green") else 0
    striped = picture.copy()
    striped[:, (np.arange(96) // 8) % 2 == 0] = 0.75 * np.array(COLOURS[name]) + 0.25 * towards * (
        0.6 if towards else 1
    )
    assert background_colour(striped) == name


def test_colours_are_well_apart() -> None:
    lab = to_lab(list(COLOURS.values()))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(len(lab))
    assert distance.min() > 28


def test_lab_agrees_with_another_library() -> None:
    colour = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(1).integers(0, 256, (50, 3))
    np.testing.assert_allclose(to_lab(rgb), colour.rgb2lab(rgb[None] / 255.0)[0], atol=0.1)


@pytest.mark.parametrize(
    ("x", "y", "word"), [(0.5, 0.5, "center"), (0.2, 0.5, "left"), (0.8, 0.2, "top right"), (0.5, 0.8, "bottom")]
)
def test_finds_the_thing_and_says_where(x: float, y: float, word: str) -> None:
    picture = canvas(COLOURS["yellow"])
    picture[:, (np.arange(96) // 8) % 2 == 0] = (170, 150, 50)
    left, top = round(x * 96) - 12, round(y * 96) - 12
    picture[top : top + 24, left : left + 24] = (20, 40, 200)
    place = object_position(picture)
    assert place == pytest.approx((x, y), abs=0.015)
    assert position_word(*place) == word
    assert foreground(picture).sum() == 24 * 24


def test_an_empty_picture_has_no_thing() -> None:
    assert object_position(canvas((10, 200, 30))) is None


def test_refuses_what_is_no_rgb_picture() -> None:
    with pytest.raises(DataError, match="3 channels"):
        background_colour(np.zeros((96, 96), np.uint8))

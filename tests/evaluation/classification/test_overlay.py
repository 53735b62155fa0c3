from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from visionpeft.evaluation.classification.overlay import overlay, seen


def test_no_heat_is_the_picture_in_grey():
    picture = Image.effect_noise((20, 12), 60).convert("RGB")
    assert overlay(picture, np.zeros((3, 3))).tobytes() == picture.convert("L").convert("RGB").tobytes()


def test_heat_colours_its_own_place():
    hot = np.zeros((4, 4))
    hot[0, 3] = 2.5
    laid = np.asarray(overlay(Image.new("RGB", (40, 40), (100, 100, 100)), hot)).astype(int)
    assert laid.shape == (40, 40, 3)
    assert laid[4, 35, 0] > laid[4, 35, 2] + 60
    np.testing.assert_array_equal(laid[35, 4], [100, 100, 100])


def test_more_heat_is_brighter():
    steps = np.linspace(0.05, 1, 20)[None]
    laid = overlay(Image.new("RGB", (200, 10)), steps, strength=1.0).convert("L")
    assert (np.diff(np.asarray(laid)[5, 10:190:20].astype(int)) >= 0).all()


def test_pixels_become_the_picture_that_the_model_saw():
    shades = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    pixels = np.moveaxis((shades / 255 - mean) / std, -1, 1)
    for picture, expected in zip(seen(pixels, mean, std), shades, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), expected)
    assert np.asarray(seen(pixels + 9, mean, std)[0]).min() == pytest.approx(255)

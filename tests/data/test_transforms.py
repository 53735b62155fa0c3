import numpy as np
import pytest
import torch
from PIL import Image

from visionpeft.data.transforms import View, bucket, covering, pixels, seen, view_of


def gradient(width, height):
    row = np.linspace(0, 255, width)
    return Image.fromarray(np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((512, 512), (512, 512)), ((4000, 3000), (576, 448)), ((300, 900), (256, 768)), ((5000, 100), (3200, 64))],
)
def test_bucket(size, wanted):
    assert bucket(*size, 512, 64) == wanted
    assert bucket(*size[::-1], 512, 64) == wanted[::-1]


def test_views_are_functions_of_seed_epoch_and_index():
    def view(*at):
        return view_of((60, 40), resolution=32, unit=16, crop="random", flip=True, at=at)

    assert view(0, 1, 2) == view(0, 1, 2)
    views = {view(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)}
    assert len(views) == 27
    flips = [view(0, epoch, 0).flip for epoch in range(400)]
    assert 150 < sum(flips) < 250
    plain = {view_of((60, 40), resolution=32, unit=16, crop="center", flip=False, at=(0, e, 0)) for e in range(50)}
    assert plain == {View(32, 32)}


def test_none_keeps_the_whole_picture():
    view = view_of((64, 32), resolution=32, unit=16, crop="none", flip=False, at=(0, 0, 0))
    assert (view.width, view.height) == (32, 16)
    got = np.asarray(seen(gradient(64, 32), view))
    assert got.shape == (16, 32, 3)
    assert got[0, 0, 0] < 8
    assert got[0, -1, 0] > 247


def test_crops_and_flips_show_the_right_part():
    image = gradient(64, 32)
    left, right = (np.asarray(seen(image, View(32, 32, side, 0.5))) for side in (0.0, 1.0))
    assert np.array_equal(left, np.asarray(image)[:, :32])
    assert np.array_equal(right, np.asarray(image)[:, 32:])
    flipped = np.asarray(seen(image, View(32, 32, 0.0, 0.5, flip=True)))
    assert np.array_equal(flipped, left[:, ::-1])


def test_covering_only_makes_smaller():
    assert covering(gradient(64, 32), 16).size == (32, 16)
    assert covering(gradient(64, 32), 100).size == (64, 32)


def test_pixels_range_and_layout():
    array = np.zeros((2, 3, 3), np.uint8)
    array[0, 1] = (255, 127, 0)
    got = pixels(Image.fromarray(array))
    assert got.shape == (3, 2, 3)
    assert torch.allclose(got[:, 0, 1], torch.tensor([1.0, 127 / 127.5 - 1, -1.0]))

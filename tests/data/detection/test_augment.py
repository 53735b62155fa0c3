from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from visionpeft.data.detection.augment import (
    Sample,
    SceneAugment,
    SceneSize,
    augmented,
    cropped,
    flipped,
    jittered,
    mosaic,
    prepared,
    resized,
    size_for,
    sized,
)  # fmt: skip
from visionpeft.data.detection.scenes import LabelledScenes, Scene

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))
NEVER = SceneAugment(flip_horizontal=0)


def painted(label=0, box=(20, 12, 60, 40), size=(96, 64), ground=(0, 0, 0)):
    """A picture with one rectangle of the label's colour exactly at its box."""
    pixels = np.full((size[1], size[0], 3), ground, np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = COLOURS[label]
    return Sample(Image.fromarray(pixels), np.array([box], np.float32), np.array([label]))


def extent(image, label):
    """Corners of all that is mostly of the label's colour."""
    distance = np.abs(np.asarray(image, np.int64) - np.array(COLOURS[label])).max(axis=2)
    rows, columns = np.nonzero(distance < 110)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


def check(sample, tolerance=1.0):
    """Every box encloses the colour of its label, and no colour is without a box."""
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        np.testing.assert_allclose(extent(sample.image, label), box, atol=tolerance)
    unlabelled = set(range(len(COLOURS))) - set(sample.labels.tolist())
    return [label for label in unlabelled if extent(sample.image, label) is not None]


@pytest.mark.parametrize("axis", [0, 1])
def test_flips(axis):
    sample = flipped(painted(), axis)
    assert check(sample, 0) == []
    assert sample.boxes.tolist() == ([[36, 12, 76, 40]] if axis == 0 else [[20, 24, 60, 52]])


@pytest.mark.parametrize("size", [(48, 32), (192, 128), (64, 64), (91, 33)])
def test_resizing(size):
    sample = resized(painted(), size)
    assert sample.image.size == size
    assert check(sample) == []


@pytest.mark.parametrize(
    ("picture", "side", "longest", "wanted"),
    [((640, 480), 800, 1333, (1067, 800)), ((480, 640), 800, 1333, (800, 1067)), ((2000, 500), 800, 1333, (1333, 333))],
)
def test_the_shortest_side_is_set_and_the_longest_limited(picture, side, longest, wanted):
    assert size_for(*picture, SceneSize(side=side, longest=longest), side) == wanted
    assert size_for(*picture, SceneSize(fit="stretch", side=640), 640) == (640, 640)


@pytest.mark.parametrize(
    ("window", "visible", "kept"),
    [
        ((10, 5, 90, 60), 0.4, True),
        ((40, 0, 96, 64), 0.4, True),
        ((40, 0, 96, 64), 0.6, False),
        ((70, 0, 96, 64), 0, 0),
    ],
)
def test_crops_keep_what_is_seen_enough(window, visible, kept):
    sample = cropped(painted(), window, visible)
    assert len(sample.boxes) == len(sample.labels) == int(kept)
    assert sample.image.size == (window[2] - window[0], window[3] - window[1])
    check(sample, 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_mosaic_shows_four_pictures_and_their_boxes(seed):
    samples = [
        painted(label, box, size)
        for label, (box, size) in enumerate(
            [((20, 12, 60, 40), (96, 64)), ((5, 5, 70, 90), (80, 100)), ((30, 30, 40, 40), (64, 64)),
             ((0, 0, 200, 30), (210, 40))]
        )
    ]  # fmt: skip
    sample = mosaic(samples, 0.3, np.random.default_rng(seed))
    assert sample.image.size == (96, 64)
    check(sample)
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= [96, 64, 96, 64]).all()
    for label in check(sample):  # what is seen of an object that has no box any more is less than its share
        left, top, right, bottom = extent(sample.image, label)
        assert (right - left) * (bottom - top) < 96 * 64 / 4


def in_memory(samples):
    class Scenes(LabelledScenes):
        def image(self, index):
            return samples[index].image

    rows = (Scene(str(i), *s.image.size, s.boxes, s.labels) for i, s in enumerate(samples))
    return Scenes(tuple("abcd"), tuple(rows))


ALL = SceneAugment(flip_horizontal=0.5, flip_vertical=0.5, crop=0.7, mosaic=0.5, min_visible=0.2)


def test_all_together_keeps_boxes_right_at_every_draw():
    scenes = in_memory([painted(0), painted(1, (2, 2, 30, 30)), painted(2, (50, 20, 90, 60)), painted(3)])
    size = SceneSize(side=64, sides=(48, 64, 96), longest=400)
    sizes, counts = set(), set()
    for epoch in range(60):
        sample = augmented(scenes, epoch % 4, ALL, size, at=(7, epoch))
        sizes.add(min(sample.image.size))
        counts.add(len(sample.boxes))
        for label in set(sample.labels.tolist()):
            boxes = sample.boxes[sample.labels == label]  # a mosaic may show a picture more than once
            whole = [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
            seen = extent(sample.image, label)
            assert seen[0] <= whole[0] + 1.5
            assert seen[1] <= whole[1] + 1.5
            assert seen[2] >= whole[2] - 1.5
            assert seen[3] >= whole[3] - 1.5
            if len(boxes) == len(sample.boxes) == 1:
                np.testing.assert_allclose(seen, boxes[0], atol=1.5)
    assert sizes == {48, 64, 96}
    assert len(counts) > 2


def test_a_draw_is_a_function_of_seed_epoch_and_index():
    scenes = in_memory([painted(0), painted(1), painted(2), painted(3)])
    config = ALL.model_copy(update={"brightness": 0.3})

    def draw(seed, epoch, index):
        sample = augmented(scenes, index, config, SceneSize(side=64), at=(seed, epoch))
        return sample.image.tobytes(), sample.boxes.tobytes()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(seed, epoch, index) for seed in range(2) for epoch in range(3) for index in range(2)}) == 12


def test_flips_happen_as_often_as_told():
    scenes = in_memory([painted()])
    config, size = SceneAugment(flip_horizontal=0.25), SceneSize(side=64)
    lefts = [augmented(scenes, 0, config, size, at=(0, epoch)).boxes[0, 0] for epoch in range(200)]
    assert 30 < sum(left != 20 for left in lefts) < 70


def test_crowds_are_left_out_and_evaluation_changes_nothing_else():
    sample = painted()
    row = Scene(
        "a", 96, 64, np.concatenate([sample.boxes, sample.boxes]), np.array([0, 1]), crowd=np.array([False, True])
    )

    class Scenes(LabelledScenes):
        def image(self, index):
            return sample.image

    got = prepared(Scenes(("a", "b"), (row,)), 0, SceneSize(side=128, sides=(64,)))
    assert got.labels.tolist() == [0]
    assert got.image.size == (192, 128)
    assert check(got) == []


def test_colours_change_and_boxes_do_not():
    sample, rng = painted(ground=(90, 120, 60)), np.random.default_rng(0)
    for name in ("brightness", "contrast", "saturation", "hue"):
        changed = jittered(sample.image, NEVER.model_copy(update={name: 0.4}), rng)
        assert changed.size == sample.image.size
        assert changed.tobytes() != sample.image.tobytes()
    assert jittered(sample.image, NEVER, rng) is sample.image


def test_pictures_without_objects_go_through():
    empty = Sample(painted().image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    scenes = in_memory([empty] * 4)
    config = ALL.model_copy(update={"mosaic": 1.0, "crop": 1.0})
    sample = augmented(scenes, 0, config, SceneSize(side=64), at=(0, 0))
    assert sample.boxes.shape == (0, 4)
    assert sized(empty, SceneSize(side=32, longest=64), 32).image.size == (48, 32)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValidationError, match="larger than longest"):
        SceneSize(sides=(1400,))
    with pytest.raises(ValidationError, match="crop_area"):
        SceneAugment(crop_area=(0.9, 0.3))

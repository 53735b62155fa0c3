from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from visionpeft.evaluation.detection.detections import Detections
from visionpeft.inference.detect import (
    MergeConfig,
    TileConfig,
    ViewConfig,
    in_tiles,
    in_views,
    tile_windows,
    views_of,
)

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])


def painted(size, rectangles):
    """Rectangles (label, left, top, right, bottom) on black; those of one colour must not touch."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for label, left, top, right, bottom in rectangles:
        pixels[top:bottom, left:right] = COLOURS[label]
    return Image.fromarray(pixels)


class Finder:
    """Finds coloured rectangles exactly, as a perfect model would; what is seen in part is a box around that part."""

    def __init__(self, noise=0.0, largest=None):
        self.noise, self.largest, self.calls = noise, largest, []
        self.rng = np.random.default_rng(0)

    def __call__(self, pictures):
        self.calls.append([picture.size for picture in pictures])
        assert self.largest is None or max(max(picture.size) for picture in pictures) <= self.largest
        return [self.find(np.asarray(picture, np.int64)) for picture in pictures]

    def find(self, pixels):
        boxes, labels = [], []
        for label, colour in enumerate(COLOURS):
            spots, _ = ndimage.label(np.abs(pixels - colour).max(axis=2) < 110)
            for rows, columns in ndimage.find_objects(spots):
                if self.noise and min(rows.stop - rows.start, columns.stop - columns.start) < 4:
                    continue  # a model that is a little off does not see slivers
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                labels.append(label)
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        boxes += self.rng.normal(0, self.noise, boxes.shape).astype(np.float32) if self.noise else 0
        return Detections("", boxes, self.rng.uniform(0.5, 1, len(labels)), labels)


def rows(found):
    return sorted((int(label), *box) for label, box in zip(found.labels, found.boxes.tolist(), strict=True))


def random_rectangles(seed, size, count, largest):
    """Rectangles that do not touch, some beyond one tile, some at the picture's edges."""
    rng = np.random.default_rng(seed)
    taken, result = np.zeros((size[1] + 2, size[0] + 2), bool), []
    for _ in range(count * 20):
        width, height = rng.integers(4, largest, 2)
        left, top = (int(np.clip(rng.integers(-20, side), 0, side - 4)) for side in size)
        right, bottom = min(left + int(width), size[0]), min(top + int(height), size[1])
        if len(result) < count and not taken[top : bottom + 2, left : right + 2].any():
            taken[top : bottom + 2, left : right + 2] = True
            result.append((int(rng.integers(3)), left, top, right, bottom))
    return result


@pytest.mark.parametrize("by", ["nms", "wbf"])
@pytest.mark.parametrize("seed", range(8))
def test_tiles_find_what_the_picture_has_once_each_and_exactly(seed, by):
    size = [(300, 220), (97, 350), (256, 256), (65, 64)][seed % 4]
    wanted = random_rectangles(seed, size, 14, 150)
    config = TileConfig(size=64, overlap=16, batch_size=5, merge=MergeConfig(by=by))
    finder = Finder(largest=64)
    (found,) = in_tiles(finder, config)([painted(size, wanted)])
    assert rows(found) == sorted((label, *map(float, box)) for label, *box in wanted)
    assert max(map(len, finder.calls)) <= 5


@pytest.mark.parametrize("by", ["nms", "wbf"])
def test_an_object_on_borders_and_corners_of_tiles_comes_whole(by):
    config = TileConfig(size=64, overlap=16, merge=MergeConfig(by=by))
    lefts = sorted({window[0] for window in tile_windows(160, 160, config)})
    assert lefts == [0, 48, 96]
    for box in [(40, 40, 70, 70), (60, 10, 64, 14), (48, 3, 64, 9), (30, 30, 130, 130), (0, 50, 160, 60),
                (47, 47, 65, 65), (63, 0, 160, 5), (0, 0, 160, 160)]:  # fmt: skip
        (found,) = in_tiles(Finder(), config)([painted((160, 160), [(1, *box)])])
        assert rows(found) == [(1, *map(float, box))], box


def test_neighbours_of_one_class_stay_apart():
    boxes = [(0, 40, 20, 62, 30), (0, 40, 32, 62, 42), (0, 64, 20, 90, 30), (0, 52, 44, 58, 60)]
    (found,) = in_tiles(Finder(), TileConfig(size=64, overlap=16))([painted((150, 64), boxes)])
    assert rows(found) == sorted((label, *map(float, box)) for label, *box in boxes)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_that_are_a_little_off_are_still_one_an_object(seed):
    wanted = random_rectangles(seed, (300, 220), 8, 60)
    wanted = [row for row in wanted if row[3] - row[1] >= 16 and row[4] - row[2] >= 16]
    finder = Finder(noise=0.7)
    finder.rng = np.random.default_rng(seed)
    (found,) = in_tiles(finder, TileConfig(size=96, overlap=48))([painted((300, 220), wanted)])
    assert len(found) == len(wanted)
    for got, (label, *box) in zip(rows(found), sorted(wanted), strict=True):
        assert got[0] == label
        np.testing.assert_allclose(got[1:], box, atol=4)


def test_a_picture_that_fits_a_tile_is_looked_at_as_it_is():
    finder = Finder()
    small, large = painted((50, 40), [(0, 1, 2, 9, 8)]), painted((100, 40), [(1, 10, 2, 90, 8)])
    first, second = in_tiles(finder, TileConfig(size=64, overlap=16))([small, large])
    assert finder.calls[0] == [(50, 40)]
    assert (first.name, second.name) == ("0", "1")
    assert rows(first) == [(0, 1, 2, 9, 8)]
    assert rows(second) == [(1, 10, 2, 90, 8)]


def test_the_whole_picture_can_be_looked_at_too():
    finder = Finder()
    (found,) = in_tiles(finder, TileConfig(size=64, overlap=16, whole=True))([painted((100, 64), [(1, 10, 2, 90, 8)])])
    assert finder.calls[-1] == [(100, 64)]
    assert rows(found) == [(1, 10, 2, 90, 8)]


@pytest.mark.parametrize("width", [64, 65, 100, 112, 113, 500])
def test_tiles_cover_the_picture_and_overlap_enough(width):
    config = TileConfig(size=64, overlap=16)
    windows = tile_windows(width, 64, config)
    assert windows[0][0] == 0
    assert windows[-1][2] == width
    assert all(a[2] - b[0] >= 16 for a, b in pairwise(windows))
    assert all(right - left == 64 for left, _, right, _ in windows)
    assert len(windows) == max(1, -(-(width - 16) // 48))


@pytest.mark.parametrize("by", ["nms", "wbf"])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0), (0.5, 1.0, 1.5)])
def test_views_find_what_the_picture_has(by, vertical, scales):
    wanted = [(0, 4, 6, 40, 30), (1, 50, 20, 90, 60), (2, 8, 40, 30, 62), (0, 60, 2, 96, 14)]
    finder = Finder()
    config = ViewConfig(flip_vertical=vertical, scales=scales, merge=MergeConfig(by=by))
    (found,) = in_views(finder, config)([painted((96, 64), wanted)])
    assert len(finder.calls) == len(views_of(config)) == len(scales) * (4 if vertical else 2)
    assert [row[0] for row in rows(found)] == [0, 0, 1, 2]
    for got, (_, *box) in zip(rows(found), sorted(wanted), strict=True):
        np.testing.assert_allclose(got[1:], box, atol=1.01 if max(scales) > 1 or min(scales) < 1 else 0)


def test_what_few_views_see_is_less_certain():
    def detect(pictures):
        first = np.asarray(pictures[0])[0, 0, 0] > 0  # the red corner is at the left: the picture is not mirrored
        boxes = [[10, 10, 20, 20]] if first else []
        return [Detections("", boxes, [0.8] * len(boxes), [0] * len(boxes)) for _ in pictures]

    picture = painted((96, 64), [(0, 0, 0, 4, 4)])
    (found,) = in_views(detect, ViewConfig())([picture])
    assert found.scores.tolist() == pytest.approx([0.4])
    (kept,) = in_views(detect, ViewConfig(merge=MergeConfig(by="nms")))([picture])
    assert kept.scores.tolist() == pytest.approx([0.8])


def test_tiles_of_views_and_views_of_tiles():
    wanted = random_rectangles(3, (200, 150), 8, 90)
    tiles, views = TileConfig(size=64, overlap=20), ViewConfig(flip_vertical=True)
    for detect in (in_views(in_tiles(Finder(), tiles), views), in_tiles(in_views(Finder(), views), tiles)):
        (found,) = detect([painted((200, 150), wanted)])
        np.testing.assert_allclose(rows(found), sorted(wanted), atol=1e-4)


def test_settings_that_cannot_be_are_refused():
    for make in (
        lambda: TileConfig(size=64, overlap=64),
        lambda: ViewConfig(scales=(0.0,)),
        lambda: MergeConfig(by="x"),
    ):
        with pytest.raises(ValidationError):
            make()

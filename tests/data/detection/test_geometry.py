from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask

from visionpeft.data.detection.geometry import (
    areas,
    centred,
    clipped,
    cornered,
    intersections,
    ious,
    mirrored,
    visible_shares,
)  # fmt: skip


def boxes(seed, count):
    corners = np.random.default_rng(seed).uniform(0, 50, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_ious_are_those_of_pycocotools(seed):
    first, second = boxes(seed, 7), boxes(seed + 100, 9)

    def as_coco(rows):
        rows = rows.astype(np.float64)
        return np.concatenate([rows[:, :2], rows[:, 2:] - rows[:, :2]], axis=1)

    np.testing.assert_allclose(
        ious(first, second), mask.iou(as_coco(first), as_coco(second), [0] * 9), rtol=1e-12, atol=1e-12
    )


def test_areas_and_shares_by_hand():
    rows = np.array([[0, 0, 10, 4], [5, 5, 5, 9], [8, 2, 6, 4]], np.float32)
    assert areas(rows).tolist() == [40, 0, 0]
    assert intersections(rows[:1], np.array([[8.0, 1, 20, 3]])).tolist() == [[4]]
    assert ious(rows[1:2], rows[1:2]).tolist() == [[0]]
    assert visible_shares(rows, (5, 0, 10, 2)).tolist() == [0.25, 0, 0]
    assert clipped(rows[:1], (5, 1, 8, 9)).tolist() == [[5, 1, 8, 4]]
    assert ious(np.zeros((0, 4)), rows).shape == (0, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_twice_is_the_same(axis):
    rows = boxes(1, 5)
    np.testing.assert_allclose(mirrored(mirrored(rows, 60, axis), 60, axis), rows, atol=1e-5)
    assert mirrored(np.array([[1, 2, 5, 9]], np.float32), 10, 0).tolist() == [[5, 2, 9, 9]]
    assert mirrored(np.array([[1, 2, 5, 9]], np.float32), 10, 1).tolist() == [[1, 1, 5, 8]]


def test_centred_and_back():
    assert centred(np.array([[10, 20, 30, 60]]), 100, 200)[0].tolist() == pytest.approx([0.2, 0.2, 0.2, 0.2])
    rows = boxes(2, 6)
    np.testing.assert_allclose(cornered(centred(rows, 64, 48), 64, 48), rows, atol=1e-4)

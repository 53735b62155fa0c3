from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.detection.cases import LABELS, random_evaluation
from visionpeft.data.detection.scenes import Scene
from visionpeft.evaluation.detection.confusion import confusion
from visionpeft.evaluation.detection.detections import Detections, evaluation_of


def test_by_hand():
    there = Scene("a", 99, 99, [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 90, 90]], [0, 1, 1, 0],
                  crowd=np.array([0, 0, 0, 1], bool))  # fmt: skip
    rows = [
        ([0, 0, 10, 10], 0.9, 0), ([0, 0, 10, 10], 0.95, 1), ([20, 20, 30, 29], 0.8, 2), ([70, 0, 80, 9], 0.7, 2),
        ([40, 40, 50, 50], 0.1, 1), ([65, 65, 75, 75], 0.9, 0),
    ]  # fmt: skip
    found = Detections("a", *(np.array(column) for column in zip(*rows, strict=True)))
    table = confusion(evaluation_of(LABELS, [there], [found]), 0.5)
    # the ant is paired with the ant that lies on it, not with the bee of higher score; the bee is taken for a cat;
    # the other bee is missed, as its detection is under the threshold; what lies on the crowd is nothing
    assert table.tolist() == [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize("seed", range(20))
def test_every_object_and_every_detection_is_counted_once(seed):
    evaluation = random_evaluation(seed, crowds=False)
    table = confusion(evaluation, 0.4)
    objects = np.bincount(np.concatenate([s.labels for s in evaluation.scenes]), minlength=3)
    detections = np.bincount(np.concatenate([d.above(0.4).labels for d in evaluation.detections]), minlength=3)
    assert table[:-1].sum(axis=1).tolist() == objects.tolist()
    assert table[:, :-1].sum(axis=0).tolist() == detections.tolist()
    assert table[-1, -1] == 0

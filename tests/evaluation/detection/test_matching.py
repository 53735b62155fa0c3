from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.detection.cases import LABELS, random_evaluation
from tests.evaluation.detection.reference import picture_rows
from visionpeft.data.detection.scenes import Scene
from visionpeft.evaluation.detection.detections import Detections, evaluation_of
from visionpeft.evaluation.detection.matching import all_matches, matched


def scene(*boxes, labels=None, crowd=()):
    return Scene("a", 100, 100, np.array(boxes, np.float32), labels or [0] * len(boxes), crowd=np.array(crowd, bool))


def found(*rows):
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections("a", np.array(boxes), np.array(scores), np.array(labels))


def test_the_best_score_takes_the_object_and_each_object_is_taken_once():
    there = scene((0, 0, 10, 10), (50, 50, 60, 60))
    match = matched(there, found(((0, 0, 10, 9), 0.5, 0), ((0, 0, 10, 8), 0.9, 0), ((80, 80, 90, 90), 0.3, 0)))
    assert match.hits.tolist() == [-1, 0, -1]
    assert match.found.tolist() == [True, False]


def test_another_class_hits_nothing_and_less_than_the_iou_neither():
    there = scene((0, 0, 10, 10))
    assert matched(there, found(((0, 0, 10, 10), 0.9, 1))).hits.tolist() == [-1]
    assert matched(there, found(((0, 0, 10, 5), 0.9, 0))).hits.tolist() == [0]
    assert matched(there, found(((0, 0, 10, 4.9), 0.9, 0))).hits.tolist() == [-1]


def test_a_crowd_counts_neither_for_nor_against():
    there = scene((0, 0, 50, 50), (0, 0, 10, 10), crowd=(True, False))
    match = matched(there, found(((20, 20, 30, 30), 0.9, 0), ((0, 0, 10, 10), 0.8, 0), ((45, 45, 60, 60), 0.7, 0)))
    assert match.hits.tolist() == [-2, 1, -1]
    assert match.found.tolist() == [False, True]


def test_only_the_hundred_best_of_a_class_count():
    there = scene((0, 0, 10, 10))
    rows = [((0, 0, 10, 10), 0.1, 0), *(((50, 50, 60, 60), 0.5, 0) for _ in range(100)), ((0, 0, 9, 9), 0.2, 1)]
    hits = matched(there, found(*rows)).hits.tolist()
    assert hits == [-2, *[-1] * 100, -1]


@pytest.mark.parametrize("seed", range(30))
def test_matches_are_those_of_the_definition(seed):
    evaluation = random_evaluation(seed)
    matches = all_matches(evaluation)
    assert (np.diff(matches.scores) <= 0).all()
    for label in range(len(LABELS)):
        wanted = []
        for number, (there, seen) in enumerate(zip(evaluation.scenes, evaluation.detections, strict=True)):
            rows, objects = picture_rows(there, seen, label, 0.5, "all", 100)
            wanted += [(number, score, hit) for score, hit, ignored in rows if not ignored]
            assert matches.objects[number, label] == objects
        wanted.sort(key=lambda row: -row[1])
        chosen = matches.labels == label
        got = zip(matches.pictures[chosen].tolist(), matches.scores[chosen].tolist(), matches.hit[chosen], strict=True)
        assert list(got) == wanted


def test_detections_and_scenes_are_joined_by_name():
    from visionpeft.errors import DataError

    a, b = (Scene(name, 9, 9, np.zeros((0, 4)), []) for name in ("a.png", "b.png"))
    seen = {name: Detections(name, [], [], []) for name in ("a.png", "b.png", "c.png")}
    joined = evaluation_of(LABELS, [a, b], [seen["b.png"], seen["a.png"]])
    assert [d.name for d in joined.detections] == ["a.png", "b.png"]
    for scenes, detections, says in (
        ([], [], "no pictures"),
        ([a, b], [seen["a.png"]], r"1 of 2 pictures have no detections, b\.png"),
        ([a], [seen["a.png"], seen["c.png"]], r"detections of c\.png.*Did you mean 'a\.png'"),
        ([a, a], [seen["a.png"]], "stands 2 times in the scenes"),
        ([a], [Detections("a.png", [[0, 0, 1, 1]], [0.5], [3])], "label is not among 0 to 2"),
    ):
        with pytest.raises(DataError, match=says):
            evaluation_of(LABELS, scenes, detections)
    with pytest.raises(DataError, match="is no number"):
        Detections("a", [[0, 0, 1, np.nan]], [0.5], [0])
    with pytest.raises(DataError, match="1 boxes, 2 scores"):
        Detections("a", [[0, 0, 1, 1]], [0.5, 0.6], [0])

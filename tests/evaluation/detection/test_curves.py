from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tests.evaluation.detection.cases import LABELS, random_evaluation
from visionpeft.evaluation.detection.curves import (
    Rule,
    chosen_threshold,
    operating_at,
    precision_at_recalls,
    threshold_curve,
)
from visionpeft.evaluation.detection.matching import Matches, all_matches


def matches(rows, objects):
    scores, hit = (np.array(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows), np.int64)
    return Matches(scores.astype(np.float32), zeros, hit.astype(bool), zeros, np.array([[objects]]))


SOME = matches([(0.9, 1), (0.8, 1), (0.6, 0), (0.6, 1), (0.5, 0), (0.4, 1), (0.3, 0)], 5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("label", [None, 0, 2])
def test_the_curve_is_what_each_threshold_gives(seed, label):
    found = all_matches(random_evaluation(seed))
    curve = threshold_curve(found, label)
    assert (np.diff(curve.thresholds) < 0).all()
    for place, threshold in enumerate(curve.thresholds):
        point = operating_at(found, float(threshold), label)
        assert (point.hits, point.alarms) == (curve.hits[place], curve.alarms[place])
        assert point.misses == curve.objects - point.hits
        assert point.precision == pytest.approx(curve.precision[place])
        assert (point.recall or 0) == pytest.approx(curve.recall[place])
        assert point.f1 == pytest.approx(curve.f1[place])
        if point.precision and point.recall:
            assert point.f1 == pytest.approx(2 / (1 / point.precision + 1 / point.recall))


def test_equal_scores_come_together():
    curve = threshold_curve(SOME)
    assert curve.thresholds.astype(np.float32).tolist() == np.float32([0.9, 0.8, 0.6, 0.5, 0.4, 0.3]).tolist()
    assert curve.hits.tolist() == [1, 2, 3, 3, 4, 4]
    assert curve.alarms.tolist() == [0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        (Rule(), 0.4),  # F1 8 / 11, before 6 / 9 at 0.6
        (Rule(by="precision", least=0.75), 0.6),
        (Rule(by="precision", least=1.0), 0.8),
        (Rule(by="recall", least=0.4), 0.8),
        (Rule(by="recall", least=0.7), 0.4),
        (Rule(by="recall", least=0.9), None),
    ],
)
def test_a_threshold_is_chosen_by_its_rule(rule, threshold):
    chosen = chosen_threshold(SOME, rule)
    assert chosen == (None if threshold is None else pytest.approx(threshold))
    if chosen is not None:  # the detection whose score it is counts
        assert operating_at(SOME, chosen).hits + operating_at(SOME, chosen).alarms == (SOME.scores >= chosen).sum()


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_has_a_larger_f1(seed):
    found = all_matches(random_evaluation(seed))
    chosen = chosen_threshold(found, Rule())
    if chosen is None:
        assert not len(found.scores) or not found.objects.sum()
        return
    best = operating_at(found, chosen).f1
    assert all((operating_at(found, float(t)).f1 or 0) <= best + 1e-12 for t in np.linspace(0, 1, 101))


def test_nothing_to_choose_from():
    empty = Matches(np.zeros(0, np.float32), *(np.zeros(0, np.int64),), np.zeros(0, bool), np.zeros(0, np.int64),
                    np.array([[3]]))  # fmt: skip
    assert chosen_threshold(empty, Rule()) is None
    assert operating_at(empty, 0.5).precision is None
    assert operating_at(empty, 0.5).recall == 0
    assert precision_at_recalls(empty, 0).tolist() == [0] * 101
    nobody = Matches(SOME.scores, SOME.labels, np.zeros(7, bool), SOME.pictures, np.array([[0]]))
    assert precision_at_recalls(nobody, 0) is None
    assert operating_at(nobody, 0.5).recall is None
    assert chosen_threshold(nobody, Rule()) is None


@pytest.mark.parametrize("settings", [{"by": "precision"}, {"by": "f1", "least": 0.5}, {"by": "luck"}])
def test_rules_that_say_half_are_refused(settings):
    with pytest.raises(ValidationError):
        Rule(**settings)


def test_labels_are_told_apart():
    found = all_matches(random_evaluation(3, pictures=6))
    parts = [operating_at(found, 0.3, label) for label in range(len(LABELS))]
    whole = operating_at(found, 0.3)
    assert sum(part.hits for part in parts) == whole.hits
    assert sum(part.misses for part in parts) == whole.misses

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import confusion_matrix

from tests.evaluation.classification.made import KINDS, made
from visionpeft.evaluation.classification.operating import operating_points
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.settings import OperatingPointConfig


def rates(given: Predictions, place: int, threshold: float) -> tuple[float, float]:
    truth, said = given.truth[:, given.asked[place]], given.probabilities[:, given.asked[place]] >= threshold
    (tn, fp), (fn, tp) = confusion_matrix(truth, said, labels=[False, True])
    return tp / (tp + fn), tn / (tn + fp)


def labels_of(given: Predictions) -> list[str]:
    return [given.labels[place] for place in given.asked]


def every_rate(given: Predictions, place: int) -> list[tuple[float, float]]:
    values = np.unique(given.probabilities[:, given.asked[place]])
    return [rates(given, place, threshold) for threshold in [*values, 2.0]]


RULES = [
    ({"rule": "youden"}, lambda sens, spec: sens + spec, lambda sens, spec: True),
    ({"rule": "sensitivity", "at_least": 0.9}, lambda sens, spec: spec, lambda sens, spec: sens >= 0.9),
    ({"rule": "specificity", "at_least": 0.8}, lambda sens, spec: sens, lambda sens, spec: spec >= 0.8),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rule", "worth", "allowed"), RULES, ids=[rule["rule"] for rule, _, _ in RULES])
def test_no_threshold_is_better_by_the_rule(kind, rule, worth, allowed):
    """Against every threshold there is, tried one by one."""
    for seed in range(8):
        given = made(kind, 50, seed=seed, tied=seed % 2 == 0)
        points = operating_points(given, labels_of(given), OperatingPointConfig(**rule))
        for place, point in enumerate(points):
            assert point.chosen_on == "validation"
            sens, spec = rates(given, place, point.threshold)
            assert (point.sensitivity, point.specificity) == (pytest.approx(sens), pytest.approx(spec))
            assert allowed(sens + 1e-12, spec + 1e-12)
            best = max(worth(*pair) for pair in every_rate(given, place) if allowed(*pair))
            assert worth(sens, spec) == pytest.approx(best)


def test_a_specificity_of_one_may_mean_never_yes():
    given = Predictions(("a", "b"), np.array([[0.0, 3.0], [0.0, 1.0]]), np.array([0, 1]), ("no", "yes"), "binary")
    (point,) = operating_points(given, ["yes"], OperatingPointConfig(rule="specificity", at_least=1.0))
    assert point.threshold > given.probabilities[0, 1]
    assert np.isfinite(point.threshold)
    assert (point.sensitivity, point.specificity) == (0.0, 1.0)


def test_without_validation_the_threshold_is_the_fixed_one_and_says_why():
    (point,) = operating_points(None, ["yes"], OperatingPointConfig(rule="youden", threshold=0.3))
    assert (point.threshold, point.chosen_on, point.sensitivity) == (0.3, "fixed", None)
    assert "no validation pictures to choose by the rule (largest Youden index) on" in point.note


def test_a_class_without_validation_pictures_keeps_the_fixed_threshold():
    given = made("multiclass", 60)
    kept = given.subset(np.flatnonzero(given.targets != 2))
    points = operating_points(kept, list(given.labels), OperatingPointConfig())
    assert [point.chosen_on for point in points] == ["validation", "validation", "fixed", "validation"]
    assert points[2].note == "validation has no picture that speaks for 'C'"


def test_a_fixed_threshold_is_taken_as_it_is():
    given = made("multilabel")
    points = operating_points(given, labels_of(given), OperatingPointConfig(rule="fixed", threshold=0.2))
    assert {(point.threshold, point.chosen_on, point.note) for point in points} == {(0.2, "fixed", "")}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rule": "sensitivity"}, "needs at_least"),
        ({"rule": "youden", "at_least": 0.9}, "takes no at_least"),
        ({"rule": "fixed", "threshold": 1.0}, "less than 1"),
        ({"rule": "best"}, "youden"),
    ],
)
def test_settings_that_contradict_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        OperatingPointConfig(**settings)

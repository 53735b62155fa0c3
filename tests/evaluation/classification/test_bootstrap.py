from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.evaluation.classification.made import made
from visionpeft.evaluation.classification import bootstrap
from visionpeft.evaluation.classification.bootstrap import figure, resampled
from visionpeft.evaluation.classification.measure import measured
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.classification.statistics import Scored, statistics


def weights_of(given: Predictions, **settings) -> np.ndarray:
    """The weights of every resample [R, N]."""
    config = ReportConfig(**({"resamples": 200} | settings))
    return resampled(given, config, lambda weights: {"weights": weights})[1]["weights"]


def alone(given: Predictions) -> Predictions:
    return Predictions(given.names, given.logits, given.targets, given.labels, given.kind)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_resamples_keep_the_number_of_each_class(kind):
    given = alone(made(kind, 50))
    counts = weights_of(given) @ given.truth
    np.testing.assert_array_equal(counts, np.broadcast_to(given.truth.sum(axis=0), counts.shape))


def test_resamples_of_many_labels_keep_the_number_of_pictures():
    given = alone(made("multilabel", 50))
    np.testing.assert_array_equal(weights_of(given).sum(axis=1), 50)


def test_a_patients_pictures_are_drawn_together_and_patients_by_class():
    given = made("multiclass", 90)
    weights = weights_of(given)
    patients = np.array([int(name[1:]) for name in given.columns["patient"]])
    by_patient = np.stack([weights[:, patients == number] for number in range(30)])
    assert (by_patient == by_patient[:, :, :1]).all()
    most = np.array([np.bincount(given.targets[patients == number], minlength=4).argmax() for number in range(30)])
    counts = by_patient[:, :, 0].T @ np.eye(4)[most]
    np.testing.assert_array_equal(counts, np.broadcast_to(np.bincount(most, minlength=4), counts.shape))
    assert not (weights_of(given, patient_column="nobody")[:, :3].std(axis=1) == 0).all()


def test_pictures_of_unknown_patients_are_each_alone():
    given = made("binary", 20)
    unknown = Predictions(given.names, given.logits, given.targets, given.labels, "binary", {"patient": ("",) * 20})
    np.testing.assert_array_equal(weights_of(unknown), weights_of(alone(given)))


def test_resamples_are_a_function_of_the_seed_and_not_of_the_chunks(monkeypatch):
    given = made("binary", 40)
    one = weights_of(given, seed=3)
    np.testing.assert_array_equal(one, weights_of(given, seed=3))
    monkeypatch.setattr(bootstrap, "_CHUNK", 40 * 7)
    np.testing.assert_array_equal(one, weights_of(given, seed=3))
    assert not np.array_equal(one, weights_of(given, seed=4))


def test_the_interval_is_that_of_a_plain_bootstrap_loop():
    """Against resamples drawn one by one by another generator: both ends to within their own noise."""
    given = alone(made("binary", 150, seed=7))
    found = measured(Scored(given, np.array([0.5])), ReportConfig(resamples=2000)).whole["auc"]
    rng = np.random.default_rng(11)
    rows = [np.flatnonzero(given.targets == label) for label in (0, 1)]
    drawn = [np.concatenate([rng.choice(part, len(part)) for part in rows]) for _ in range(2000)]
    plain = [roc_auc_score(given.targets[some], given.scores[some, 0]) for some in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.01)
    assert found.low < found.value < found.high


def test_copies_of_a_patients_picture_do_not_narrow_the_interval():
    """Nine pictures a patient, all alike, are nine times one picture: the cluster bootstrap knows, the other not."""
    given = alone(made("binary", 60, seed=1))
    copies = given.subset(np.repeat(np.arange(60), 9))
    patients = {"patient": tuple(f"p{row}" for row in np.repeat(np.arange(60), 9))}
    grouped = Predictions(copies.names, copies.logits, copies.targets, copies.labels, "binary", patients)

    def width(some: Predictions) -> float:
        auc = measured(Scored(some, np.array([0.5])), ReportConfig(resamples=400)).whole["auc"]
        return auc.high - auc.low

    assert width(grouped) == pytest.approx(width(given))
    assert width(copies) < 0.5 * width(given)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Accuracy of 200 sets of 80 whose true accuracy is 0.7: a 90 % interval holds it in 90 % ± 6 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        right = rng.random(80) < 0.7
        targets = rng.integers(2, size=80)
        logits = np.eye(2)[np.where(right, targets, 1 - targets)]
        given = Predictions(tuple("x" * 80), logits, targets, ("a", "b"), "binary")
        auc = measured(Scored(given, np.array([0.5])), ReportConfig(resamples=200, level=0.9)).whole["accuracy"]
        held += auc.low <= 0.7 <= auc.high
    assert 0.84 <= held / 200 <= 0.96


def test_what_has_no_value_says_why_and_is_never_nan():
    given = made("binary", 30)
    ones = alone(given.subset(np.flatnonzero(given.targets == 1)))
    whole = measured(Scored(ones, np.array([0.5])), ReportConfig(resamples=50)).whole
    assert whole["auc"].value is None
    assert "examples and counterexamples" in whole["auc"].note
    assert whole["specificity"].value is None
    assert whole["sensitivity"].value is not None
    never = measured(Scored(given, np.array([1.0])), ReportConfig(resamples=50))
    assert never.whole["positive_predictive_value"].note == "no value: nothing is answered yes"
    assert never.classes[1]["positive_predictive_value"].note == "no value: no picture is taken for 'B'"


def test_resamples_without_a_value_are_counted():
    config = ReportConfig(resamples=100)
    samples = np.linspace(0, 1, 100)
    samples[::10] = np.nan
    found = figure(0.5, samples, config, "")
    assert found.note == "10 of 100 resamples have no value and are left out"
    assert found.low == pytest.approx(np.nanquantile(samples, 0.025))
    samples[:60] = np.nan
    lost = figure(0.5, samples, config, "")
    assert (lost.low, lost.value) == (None, 0.5)
    assert lost.note.startswith("no interval: 64 of 100")
    same = figure(1.0, np.ones(100), config, "")
    assert (same.low, same.high) == (None, None)
    assert "every resample gives the same" in same.note


def test_a_class_that_patients_may_take_away_is_said():
    """One patient has all pictures of a class, beside more of another: resamples without the class are left out."""
    targets = np.array([0, 0, 0, 1, 0, 0, 0, 0])
    patients = ("p", "p", "p", "p", "q", "r", "s", "t")
    logits = np.random.default_rng(0).normal(size=(8, 2))
    given = Predictions(tuple("abcdefgh"), logits, targets, ("no", "yes"), "binary", {"patient": patients})
    auc = measured(Scored(given, np.array([0.5])), ReportConfig(resamples=500)).whole["auc"]
    lost = int(auc.note.split(" of ")[0].split()[-1])
    assert 0.2 * 500 < lost < 0.5 * 500  # (4/5)^5 = 0.33


def test_no_resamples_no_intervals():
    whole = measured(Scored(made("ordinal"), np.full(4, 0.5)), ReportConfig(resamples=0)).whole
    assert all(found.value is not None and found.low is None and not found.note for found in whole.values())


def test_a_thousand_resamples_of_ten_thousand_predictions_take_seconds():
    given = made("binary", 10_000, seed=2)
    begun = time.process_time()
    measured(Scored(given, np.array([0.5])), ReportConfig(resamples=1000))
    seconds = time.process_time() - begun
    print(f"\n1,000 resamples of 10,000 predictions: {seconds:.1f} s")
    assert seconds < 6


def test_statistics_of_all_resamples_are_those_of_each():
    given = made("ordinal", 40)
    scored = Scored(given, np.full(4, 0.3))
    _, samples = resampled(given, ReportConfig(resamples=20), lambda weights: statistics(scored, weights))
    weights = weights_of(given, resamples=20)
    for row in range(20):
        for name, value in statistics(scored, weights[row][None]).items():
            np.testing.assert_allclose(samples[name][row], value[0], atol=1e-12)

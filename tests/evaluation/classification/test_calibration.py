from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from tests.evaluation.classification.made import KINDS, made
from visionpeft.evaluation.classification.calibration import (
    LOWEST_TEMPERATURE,
    at_temperature,
    brier_scores,
    calibration,
    calibration_error,
    claims,
    fit_temperature,
    losses,
    reliability,
)
from visionpeft.evaluation.classification.predictions import Predictions

CASES = 50


@pytest.mark.parametrize("kind", KINDS)
def test_brier_and_log_loss_are_scikit_learns(kind):
    for seed in range(CASES):
        given = made(kind, 40, seed=seed, signal=seed / 10)
        probabilities, truth = given.probabilities, given.truth
        if kind == "multilabel":
            brier = np.mean([brier_score_loss(truth[:, q], probabilities[:, q]) for q in range(truth.shape[1])])
            loss = np.mean([log_loss(truth[:, q], probabilities[:, q]) for q in range(truth.shape[1])])
        else:
            labels = range(len(given.labels))
            binary = brier_score_loss(given.targets == 1, probabilities[:, 1])
            many = brier_score_loss(given.targets, probabilities, labels=labels, scale_by_half=False)
            brier = binary if kind == "binary" else many
            loss = log_loss(given.targets, probabilities, labels=labels)
        assert brier_scores(given).mean() == pytest.approx(brier, abs=1e-6)
        assert losses(given).mean() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(("kind", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_reliability_is_scikit_learns_curve(kind, strategy):
    """With as many examples as fill the bins evenly; scikit-learn's quantiles then cut between the same examples."""
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        confidence = rng.permutation(np.linspace(0.003, 0.997, 100) ** rng.uniform(0.5, 2))
        correct = rng.random(100) < confidence
        share, mean = calibration_curve(correct, confidence, n_bins=10, strategy=strategy)
        found = reliability(confidence, correct, 10, kind)
        np.testing.assert_allclose([part.confidence for part in found], mean, atol=1e-6)
        np.testing.assert_allclose([part.share for part in found], share, atol=1e-6)


def test_calibration_error_is_the_sum_written_out():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), rng.random(500) < 0.4
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.sum() / 500 * abs(confidence[inside].mean() - correct[inside].mean())
    assert calibration_error(confidence, correct, 15, "width") == pytest.approx(expected)
    perfect = np.repeat([0.25, 0.75], 40)
    right = np.tile([True, False, False, False], 10).tolist() + np.tile([True, True, True, False], 10).tolist()
    assert calibration_error(perfect, np.array(right), 10, "width") == pytest.approx(0.0)
    assert calibration_error(np.ones(4), np.zeros(4, bool), 10, "mass") == pytest.approx(1.0)


def test_bins_hold_their_upper_ends_and_all_examples():
    confidence = np.array([0.0, 0.1, 0.1000001, 0.5, 1.0])
    found = reliability(confidence, np.ones(5, bool), 10, "width")
    assert [(part.low, part.count) for part in found] == [(0.0, 2), (0.1, 1), (0.4, 1), (0.9, 1)]
    few = reliability(confidence, np.ones(5, bool), 10, "mass")
    assert sum(part.count for part in few) == 5


def test_claims_are_about_the_question_that_is_asked():
    given = made("multiclass")
    confidence, correct = claims(given)
    np.testing.assert_array_equal(confidence, given.probabilities.max(axis=1))
    assert correct.mean() == pytest.approx((given.probabilities.argmax(axis=1) == given.targets).mean())
    binary = made("binary")
    np.testing.assert_array_equal(claims(binary)[1], binary.targets == 1)
    assert claims(made("multilabel", 30))[0].shape == (120,)


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_is_the_best_there_is(kind):
    """Against a search along the line, and against torch's L-BFGS on the same loss."""
    for seed in range(5):
        given = made(kind, 300, seed=seed, signal=3.0)
        fitted = fit_temperature(given).value
        searched = minimize_scalar(
            lambda power, given=given: losses(at_temperature(given, np.exp(power))).mean(),
            bounds=(-3, 3), method="bounded", options={"xatol": 1e-9},
        )  # fmt: skip
        assert fitted == pytest.approx(np.exp(searched.x), rel=1e-4)
        assert fitted == pytest.approx(torch_temperature(given), rel=1e-4)


def torch_temperature(given: Predictions) -> float:
    logits, power = torch.from_numpy(given.logits), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([power], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = logits / power.exp()
        if given.kind == "multilabel":
            targets = torch.from_numpy(given.targets).double()
            value = torch.nn.functional.binary_cross_entropy_with_logits(scaled, targets)
        else:
            value = torch.nn.functional.cross_entropy(scaled, torch.from_numpy(given.targets))
        value.backward()
        return value

    optimizer.step(loss)
    return power.exp().item()


def test_a_model_that_is_sure_by_a_factor_gets_it_back():
    """Labels drawn from softmax(z): z · 4 needs the temperature 4, and is calibrated with it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 1.5
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (rng.random(20_000)[:, None] > honest.cumsum(axis=1)).sum(axis=1)
    given = Predictions(tuple("x" * 20_000), logits * 4, targets, ("a", "b", "c"), "multiclass")
    fitted = fit_temperature(given).value
    assert fitted == pytest.approx(4, rel=0.03)
    before, after = calibration(given, 15), calibration(at_temperature(given, fitted), 15)
    assert before.ece > 0.15
    assert after.ece < 0.02
    assert after.ece_equal_mass < 0.02
    assert after.brier < before.brier


def test_a_temperature_at_the_end_of_the_search_says_so():
    perfect = Predictions(("a", "b"), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), ("x", "y"), "binary")
    fitted = fit_temperature(perfect)
    assert fitted.value == pytest.approx(LOWEST_TEMPERATURE)
    assert "end of what is searched" in fitted.note
    assert fit_temperature(made("binary", 100)).note == ""

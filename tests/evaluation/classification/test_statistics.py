"""Every metric against scikit-learn, on 50 random cases of each kind of labels, with and without weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from tests.evaluation.classification.made import KINDS, made
from visionpeft.evaluation.classification.statistics import Scored, statistics

CASES = 50


def reference(scored: Scored, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What scikit-learn says."""
    given = scored.predictions
    truth, answers = given.truth[:, given.asked], scored.answers
    probabilities = given.probabilities[:, given.asked].round(12)  # softmax breaks ties in the last bits
    columns = range(truth.shape[1])

    def each(score, said, **more):
        return np.array([score(truth[:, q], said[:, q], sample_weight=weights, **more) for q in columns])

    found = {
        "auc_each": each(sk.roc_auc_score, probabilities),
        "average_precision_each": each(sk.average_precision_score, probabilities),
        "sensitivity_each": each(sk.recall_score, answers, zero_division=np.nan),
        "specificity_each": each(sk.recall_score, answers, pos_label=False, zero_division=np.nan),
        "positive_predictive_value_each": each(sk.precision_score, answers, zero_division=np.nan),
        "negative_predictive_value_each": each(sk.precision_score, answers, pos_label=False, zero_division=np.nan),
    }
    found |= {name.removesuffix("_each"): np.nanmean(values) for name, values in found.items()}
    return found | (_labels(scored, weights) if given.kind == "multilabel" else _classes(scored, weights))


def _classes(scored: Scored, weights: np.ndarray | None) -> dict[str, np.ndarray]:
    given, decided = scored.predictions, scored.decided
    said = {"y_true": given.targets, "y_pred": decided, "sample_weight": weights}
    found = {
        "accuracy": sk.accuracy_score(**said),
        "balanced_accuracy": sk.balanced_accuracy_score(**said),
        "f1_macro": sk.f1_score(**said, average="macro"),
        "f1_each": sk.f1_score(**said, average=None, labels=range(len(given.labels))),
        "recall_each": sk.recall_score(**said, average=None, labels=range(len(given.labels))),
    }
    if given.kind == "binary":
        found["f1"] = sk.f1_score(**said)
    else:
        found["auc"] = sk.roc_auc_score(
            given.targets, given.probabilities.round(12), multi_class="ovr", sample_weight=weights
        )
    if given.kind == "ordinal":
        found["quadratic_kappa"] = sk.cohen_kappa_score(
            given.targets, decided, weights="quadratic", sample_weight=weights
        )
        found["mean_absolute_error"] = sk.mean_absolute_error(given.targets, decided, sample_weight=weights)
    return found


def _labels(scored: Scored, weights: np.ndarray | None) -> dict[str, np.ndarray]:
    given = scored.predictions
    truth, answers = given.truth, scored.answers
    columns = range(truth.shape[1])
    balanced = [sk.balanced_accuracy_score(truth[:, q], answers[:, q], sample_weight=weights) for q in columns]
    return {
        "auc": sk.roc_auc_score(truth, given.probabilities, average="macro", sample_weight=weights),
        "average_precision": sk.average_precision_score(truth, given.probabilities, sample_weight=weights),
        "accuracy": sk.accuracy_score(truth, answers, sample_weight=weights),
        "label_accuracy": np.mean(
            [sk.accuracy_score(truth[:, q], answers[:, q], sample_weight=weights) for q in columns]
        ),
        "balanced_accuracy_each": balanced,
        "balanced_accuracy": np.mean(balanced),
        "f1_macro": sk.f1_score(truth, answers, average="macro", sample_weight=weights),
        "f1_each": sk.f1_score(truth, answers, average=None, sample_weight=weights),
    }


def scored_case(kind, seed: int) -> Scored:
    rng = np.random.default_rng([seed, 1])
    classes = int(rng.integers(2, 6)) if kind == "multilabel" else int(rng.integers(3, 6))
    given = made(kind, int(rng.integers(30, 120)), classes, seed, signal=rng.uniform(0, 3), tied=seed % 2 == 1)
    return Scored(given, rng.uniform(0.2, 0.8, len(given.asked)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_is_scikit_learns(kind):
    for seed in range(CASES):
        scored = scored_case(kind, seed)
        found = statistics(scored, np.ones((1, len(scored.predictions))))
        expected = reference(scored)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][0], value, atol=1e-6, err_msg=f"{name}, case {seed}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_an_example_as_often(kind):
    """Each row of weights gives what scikit-learn says with those weights, and what copies of the examples give."""
    for seed in range(10):
        scored = scored_case(kind, seed)
        weights = np.random.default_rng(seed).integers(1, 4, (3, len(scored.predictions)))
        found = statistics(scored, weights.astype(float))
        for row, counts in enumerate(weights):
            copies = Scored(scored.predictions.subset(np.repeat(np.arange(len(counts)), counts)), scored.thresholds)
            again = statistics(copies, np.ones((1, counts.sum())))
            for name, value in reference(scored, counts).items():
                np.testing.assert_allclose(found[name][row], value, atol=1e-6, err_msg=f"{name}, case {seed}")
                np.testing.assert_allclose(found[name][row], again[name][0], atol=1e-9, err_msg=f"{name}, case {seed}")


def test_sure_predictions_keep_their_order():
    """Probabilities that are 1 to the last bit are ties for them alone: the log-odds still differ."""
    given = made("binary", 40, seed=3)
    scale = 1 / np.abs(given.logits).max()
    far = 50 + given.logits * scale @ np.array([[0, 0], [-1, 1]]).T
    sure = type(given)(given.names, np.stack([np.zeros(40), far[:, 1]], 1), given.targets, given.labels, "binary")
    assert len(np.unique(sure.probabilities[:, 1])) == 1
    auc = statistics(Scored(sure, np.array([0.5])), np.ones((1, 40)))["auc"][0]
    assert auc == pytest.approx(sk.roc_auc_score(given.targets, far[:, 1]))


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_a_mean_leaves_out_absent_classes_and_no_others(kind):
    given = made(kind, 80, 4, seed=5)
    kept = given.subset(np.flatnonzero(given.targets != 2))
    scored = Scored(kept, np.full(4, 0.5))
    found = statistics(scored, np.ones((1, len(kept))))
    assert np.isnan(found["auc_each"][0, 2])
    assert found["auc"][0] == pytest.approx(np.delete(found["auc_each"][0], 2).mean())
    weights = np.where(kept.targets == 1, 0.0, 1.0)[None]
    assert np.isnan(statistics(scored, weights)["auc"][0])
    assert np.isnan(statistics(scored, weights)["balanced_accuracy"][0])
    assert np.isfinite(statistics(scored, weights)["accuracy"][0])

"""Every metric by name, of a model's predictions, for many weightings of the examples at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visionpeft.evaluation.classification.kernels import (
    Ranking,
    areas,
    confusion,
    one_against_rest,
    ratio,
    yes_no_tables,
)
from visionpeft.evaluation.classification.predictions import POSITIVE, Array, Predictions, Truth

Table = dict[str, Array]


@dataclass(frozen=True)
class Scored:
    """Predictions and the thresholds that turn them into answers.

    Attributes:
        predictions: of the examples.
        thresholds: [Q] of the classes asked for: the answer is yes from that probability on.
    """

    predictions: Predictions
    thresholds: Array

    @property
    def truth(self) -> Truth:
        """Whether each class asked for is true [N, Q]."""
        return self.predictions.truth[:, self.predictions.asked]

    @cached_property
    def answers(self) -> Truth:
        """Whether each class asked for is answered yes [N, Q]."""
        return self.predictions.probabilities[:, self.predictions.asked] >= self.thresholds

    @cached_property
    def decided(self) -> npt.NDArray[np.intp]:
        """The one class that each example is taken for, [N]: by the threshold if there are two, else the likeliest.

        Not for "multilabel", whose decisions are the answers.
        """
        if self.predictions.kind == "binary":
            return self.answers[:, 0].astype(np.intp)
        return self.predictions.probabilities.argmax(axis=1)

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Of the classes asked for."""
        return [Ranking.of(self.predictions.scores[:, q], self.truth[:, q]) for q in range(len(self.predictions.asked))]


def statistics(scored: Scored, weights: Array) -> Table:
    """Return every metric, NaN where it has no value.

    - of all: "auc", "average_precision", "accuracy", "balanced_accuracy", "f1_macro", …: [R];
    - of each class asked for: "auc_each", "sensitivity_each", …: [R, Q]; "f1_each" of each class: [R, C].

    A mean over classes is one over those that have a value in the whole set; a weighting in which one of them has none
    has no mean.

    Args:
        scored: the examples.
        weights: [R, N] how often each example counts.
    """
    found = [areas(ranking, weights) for ranking in scored.rankings]
    each = {
        "auc_each": np.stack([area for area, _ in found], axis=1),
        "average_precision_each": np.stack([precision for _, precision in found], axis=1),
        **_at_operating_point(yes_no_tables(scored.truth, scored.answers, weights)),
    }
    known = scored.truth.any(axis=0)
    both = known & ~scored.truth.all(axis=0)
    means = {
        "auc": _mean(each["auc_each"], both),
        "average_precision": _mean(each["average_precision_each"], known),
        "sensitivity": _mean(each["sensitivity_each"], known),
        "specificity": _mean(each["specificity_each"], ~scored.truth.all(axis=0)),
        "positive_predictive_value": _mean(each["positive_predictive_value_each"], scored.answers.any(axis=0)),
        "negative_predictive_value": _mean(each["negative_predictive_value_each"], ~scored.answers.all(axis=0)),
    }
    return each | means | _decisions(scored, weights)


def _decisions(scored: Scored, weights: Array) -> Table:
    """The metrics of what each example was taken for."""
    given = scored.predictions
    if given.kind == "multilabel":
        return _of_labels(scored, weights)
    tables = confusion(given.targets.astype(np.intp), scored.decided, len(given.labels), weights)
    whole = confusion(given.targets.astype(np.intp), scored.decided, len(given.labels), np.ones((1, len(given))))[0]
    there = whole.sum(axis=1) > 0
    seen = there | (whole.sum(axis=0) > 0)
    recalls = ratio(np.diagonal(tables, axis1=1, axis2=2), tables.sum(axis=2))
    f1 = _f1(one_against_rest(tables))
    found = {
        "accuracy": ratio(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2))),
        "balanced_accuracy": _mean(recalls, there),
        "f1_macro": _mean(f1, seen),
        "f1_each": f1,
    }
    if given.kind == "binary":
        found["f1"] = f1[:, POSITIVE]
    return found | (_ordinal(tables) if given.kind == "ordinal" else {})


def _of_labels(scored: Scored, weights: Array) -> Table:
    """Of labels that may be true together: "accuracy" counts examples with every label right."""
    tables = yes_no_tables(scored.truth, scored.answers, weights)
    f1, recalls = _f1(tables), ratio(np.diagonal(tables, axis1=2, axis2=3), tables.sum(axis=3))
    right = (scored.truth == scored.answers).all(axis=1)
    hits = np.diagonal(tables, axis1=2, axis2=3).sum(axis=(1, 2))
    both = scored.truth.any(axis=0) & ~scored.truth.all(axis=0)
    return {
        "accuracy": ratio(weights @ right.astype(float), weights.sum(axis=1)),
        "label_accuracy": ratio(hits, tables.sum(axis=(1, 2, 3))),
        "balanced_accuracy": _mean(recalls.mean(axis=2), both),
        "f1_macro": _mean(f1, (scored.truth | scored.answers).any(axis=0)),
        "f1_each": f1,
    }


def _at_operating_point(tables: Array) -> Table:
    """Of yes-or-no tables [R, Q, 2, 2]."""
    (rest, alarm), (missed, hit) = np.moveaxis(tables, (2, 3), (0, 1))
    return {
        "sensitivity_each": ratio(hit, hit + missed),
        "specificity_each": ratio(rest, rest + alarm),
        "positive_predictive_value_each": ratio(hit, hit + alarm),
        "negative_predictive_value_each": ratio(rest, rest + missed),
    }


def _f1(tables: Array) -> Array:
    """2 TP / (2 TP + FP + FN) of yes-or-no tables [R, Q, 2, 2]; NaN where nothing is true and nothing answered yes."""
    hit = tables[:, :, 1, 1]
    return ratio(2 * hit, 2 * hit + tables[:, :, 0, 1] + tables[:, :, 1, 0])


def _ordinal(tables: Array) -> Table:
    """Quadratic weighted kappa (Cohen 1968) and the mean distance in steps, of confusion matrices [R, C, C]."""
    steps = np.arange(tables.shape[1])
    distance = np.abs(steps[:, None] - steps[None]).astype(float)
    total = tables.sum(axis=(1, 2))
    chance = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :]
    seen, expected = (tables * distance**2).sum(axis=(1, 2)), ratio((chance * distance**2).sum(axis=(1, 2)), total)
    return {
        "quadratic_kappa": 1.0 - ratio(seen, expected),
        "mean_absolute_error": ratio((tables * distance).sum(axis=(1, 2)), total),
    }


def _mean(each: Array, where: Truth) -> Array:
    """Mean over the classes ``where`` of [R, C]; NaN where one of them has no value, or there is none."""
    kept = each[:, where]
    return kept.mean(axis=1) if kept.shape[1] else np.full(len(each), np.nan)

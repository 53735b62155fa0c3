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

MEANS = (
    *((name, f"{name}_each") for name in ("auc", "average_precision", "sensitivity", "specificity")),
    *((name, f"{name}_each") for name in ("positive_predictive_value", "negative_predictive_value")),
    ("balanced_accuracy", "recall_each"),
    ("balanced_accuracy", "balanced_accuracy_each"),
    ("f1_macro", "f1_each"),
)
"""Means over classes, and what they are means of."""


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
    def by_class(self) -> Table:
        """The metrics of each class, [1, C], every example once: which of them have a value."""
        return _by_class(self, np.ones((1, len(self.predictions))))

    def confusion(self, weights: Array) -> Array:
        """How often class i was taken for class j, [R, C, C]; not for "multilabel"."""
        given = self.predictions
        return confusion(given.targets.astype(np.intp), self.decided, len(given.labels), weights)

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Of the classes asked for."""
        return [Ranking.of(self.predictions.scores[:, q], self.truth[:, q]) for q in range(len(self.predictions.asked))]


def statistics(scored: Scored, weights: Array) -> Table:
    """Return every metric, NaN where it has no value.

    - of each class asked for: "auc_each", "sensitivity_each", …: [R, Q]; "f1_each" of each class: [R, C];
    - of all: "auc", "average_precision", "accuracy", "balanced_accuracy", "f1_macro", …: [R].

    A mean over classes is one over those that have a value in the whole set; a weighting in which one of them has none
    has no mean.

    Args:
        scored: the examples.
        weights: [R, N] how often each example counts.
    """
    each, whole = _by_class(scored, weights), scored.by_class
    means = {name: _mean(each[of], np.isfinite(whole[of][0])) for name, of in MEANS if of in each}
    return each | means | _of_all(scored, weights)


def _by_class(scored: Scored, weights: Array) -> Table:
    """The metrics of each class."""
    given = scored.predictions
    found = [areas(ranking, weights) for ranking in scored.rankings]
    asked = yes_no_tables(scored.truth, scored.answers, weights)
    each = {
        "auc_each": np.stack([area for area, _ in found], axis=1),
        "average_precision_each": np.stack([precision for _, precision in found], axis=1),
        **_at_operating_point(asked),
    }
    if given.kind == "multilabel":
        balanced = (each["sensitivity_each"] + each["specificity_each"]) / 2
        return each | {"balanced_accuracy_each": balanced, "f1_each": _f1(asked)}
    tables = scored.confusion(weights)
    recalls = ratio(np.diagonal(tables, axis1=1, axis2=2), tables.sum(axis=2))
    return each | {"recall_each": recalls, "f1_each": _f1(one_against_rest(tables))}


def _of_all(scored: Scored, weights: Array) -> Table:
    """The metrics that are no means over classes."""
    total = weights.sum(axis=1)
    if scored.predictions.kind == "multilabel":
        right = (scored.truth == scored.answers).astype(float)
        found = {"accuracy": weights @ right.min(axis=1), "label_accuracy": weights @ right.mean(axis=1)}
        return {name: ratio(hits, total) for name, hits in found.items()}
    tables = scored.confusion(weights)
    found = {"accuracy": ratio(np.trace(tables, axis1=1, axis2=2), total)}
    if scored.predictions.kind == "binary":
        found["f1"] = _f1(one_against_rest(tables))[:, POSITIVE]
    return found | (_ordinal(tables) if scored.predictions.kind == "ordinal" else {})


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

"""Areas under curves and tables of counts, for many weightings of the same examples at once.

A bootstrap resample is a weighting: how often each example was drawn. ``weights`` are [R, N] throughout, a row a
resample; the plain value of a metric is that of a row of ones. What has no value is NaN here, and is told apart in
`bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionpeft.evaluation.classification.predictions import Array, Truth


@dataclass(frozen=True)
class Ranking:
    """Examples from the highest score to the lowest, those with one score in one group.

    Attributes:
        order: [N] examples, highest score first.
        starts: [G] place of each group's first example in ``order``.
        truth: [N] whether it is true, in the order of ``order``.
    """

    order: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    truth: Truth

    @classmethod
    def of(cls, scores: Array, truth: Truth) -> Ranking:
        """Rank examples by scores [N]."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        return cls(order, starts, truth[order])

    def counts(self, weights: Array) -> tuple[Array, Array]:
        """Return true and false examples in each group, [R, G] each."""
        ranked = weights[:, self.order]
        positive = np.where(self.truth, ranked, 0.0)
        if len(self.starts) < len(self.order):
            ranked = np.add.reduceat(ranked, self.starts, axis=1)
            positive = np.add.reduceat(positive, self.starts, axis=1)
        return positive, ranked - positive


def areas(ranking: Ranking, weights: Array) -> tuple[Array, Array]:
    """Return the area under the ROC curve and the average precision, [R] each.

    The former is P(score of a true one > score of a false one) + half of P(=), the latter Σ (R_g - R_{g-1}) P_g over
    the groups of equal scores: scikit-learn's ``roc_auc_score`` and ``average_precision_score``.
    """
    positive, negative = ranking.counts(weights)
    true_above, false_above = positive.cumsum(axis=1), negative.cumsum(axis=1)
    positives, negatives = true_above[:, -1], false_above[:, -1]
    wins = (positive * (negatives[:, None] - false_above + 0.5 * negative)).sum(axis=1)
    precision = true_above / np.maximum(true_above + false_above, 1e-300)
    return ratio(wins, positives * negatives), ratio((positive * precision).sum(axis=1), positives)


def confusion(truth: npt.NDArray[np.integer], decided: npt.NDArray[np.integer], classes: int, weights: Array) -> Array:
    """Return how often class i was taken for class j, [R, C (i), C (j)], of class indices [N]."""
    cells = truth * classes + decided
    order = np.argsort(cells, kind="stable")
    used, starts = np.unique(cells[order], return_index=True)
    tables = np.zeros((len(weights), classes * classes))
    tables[:, used] = np.add.reduceat(weights[:, order], starts, axis=1)
    return tables.reshape(-1, classes, classes)


def yes_no_tables(truth: Truth, decided: Truth, weights: Array) -> Array:
    """Return [R, Q, 2 (truth), 2 (answer)] counts of yes-or-no questions [N, Q], "no" first."""
    sides = [[((truth == told) & (decided == said)).astype(float) for said in (False, True)] for told in (False, True)]
    return np.moveaxis(np.stack([[weights @ cell for cell in row] for row in sides]), (0, 1), (2, 3))


def one_against_rest(tables: Array) -> Array:
    """Return the [R, C, 2, 2] yes-or-no tables within confusion matrices [R, C, C]."""
    hit = np.diagonal(tables, axis1=1, axis2=2)
    missed, alarm = tables.sum(axis=2) - hit, tables.sum(axis=1) - hit
    rest = tables.sum(axis=(1, 2))[:, None] - hit - missed - alarm
    return np.moveaxis(np.stack([[rest, alarm], [missed, hit]]), (0, 1), (2, 3))


def ratio(above: Array, below: Array) -> Array:
    """Return ``above / below``, NaN where ``below`` is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)

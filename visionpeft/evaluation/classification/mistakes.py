"""Which errors to look at: those that cost most, and those that the model is surest of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionpeft.evaluation.classification.calibration import losses
from visionpeft.evaluation.classification.predictions import POSITIVE, Array, Predictions, Truth
from visionpeft.evaluation.classification.statistics import Scored

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Mistake:
    """A picture that was taken for what it is not.

    Attributes:
        row: of the predictions.
        name: of the picture.
        truth: what it is, in words.
        said: what it was taken for, in words, with the probability.
        label: the class to explain: the wrong answer's, or the one that was missed.
    """

    row: int
    name: str
    truth: str
    said: str
    label: int


def mistakes(scored: Scored, most: int) -> dict[str, list[Mistake]]:
    """Return the errors to show by title; one list where both sorts are the same pictures.

    Args:
        scored: the predictions and their thresholds.
        most: errors in each list.
    """
    wrong = np.flatnonzero(_wrong(scored))
    cost, sureness = losses(scored.predictions), _sureness(scored)
    worst, surest = _highest(wrong, cost, most), _highest(wrong, sureness, most)
    if not worst:
        return {}
    if set(worst) == set(surest):
        return {"Worst errors, which are also the most confident": [_mistake(scored, row) for row in worst]}
    return {
        "Worst errors": [_mistake(scored, row) for row in worst],
        "Most confident errors": [_mistake(scored, row) for row in surest],
    }


def _wrong(scored: Scored) -> Truth:
    if scored.predictions.kind == "multilabel":
        return (scored.answers != scored.truth).any(axis=1)
    return scored.decided != scored.predictions.targets


def _sureness(scored: Scored) -> Array:
    """Probability of the wrong answer given, [N]; of several labels the surest wrong one."""
    given = scored.predictions
    if given.kind == "multilabel":
        return _label_errors(scored).max(axis=1)
    return given.probabilities[np.arange(len(given)), scored.decided]


def _label_errors(scored: Scored) -> Array:
    """Probability of the answer to each label where it is wrong, else 0, [N, C]."""
    given = scored.predictions
    of_answer = np.where(scored.answers, given.probabilities, 1 - given.probabilities)
    return np.where(scored.answers != scored.truth, of_answer, 0.0)


def _highest(rows: Rows, by: Array, most: int) -> list[int]:
    return rows[np.argsort(-by[rows], kind="stable")][:most].tolist()


def _mistake(scored: Scored, row: int) -> Mistake:
    given = scored.predictions
    if given.kind == "multilabel":
        return _label_mistake(scored, row)
    said = int(scored.decided[row])
    words = f"{given.labels[said]} ({_percent(given.probabilities[row, said])})"
    label = POSITIVE if given.kind == "binary" else said
    return Mistake(row, given.names[row], given.labels[int(given.targets[row])], words, label)


def _label_mistake(scored: Scored, row: int) -> Mistake:
    given = scored.predictions
    label = int(_label_errors(scored)[row].argmax())
    wrong = np.flatnonzero(scored.answers[row] != scored.truth[row])
    said = ", ".join(
        f"{'' if scored.answers[row, at] else 'not '}{given.labels[at]} ({_percent(given.probabilities[row, at])})"
        for at in wrong
    )
    return Mistake(row, given.names[row], _named(given, row), said, label)


def _named(given: Predictions, row: int) -> str:
    return ", ".join(given.labels[at] for at in np.flatnonzero(given.truth[row])) or "none of the labels"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

"""Word and character error rates: (substitutions + deletions + insertions) / what was said, over all utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from visionpeft.evaluation.speech.alignment import Alignment
from visionpeft.evaluation.speech.bootstrap import Interval, rate_interval

Counts = NDArray[np.int64]


class Draw(BaseModel):
    """How intervals are drawn."""

    model_config = ConfigDict(frozen=True)

    resamples: int
    level: float
    seed: int

    def interval(self, errors: Counts, totals: Counts) -> Interval | None:
        """Return where Σ errors / Σ totals lies with other utterances; None where nothing can be resampled."""
        return rate_interval(errors, totals, resamples=self.resamples, level=self.level, seed=self.seed)


class Rate(BaseModel):
    """An error rate and what it is made of.

    Attributes:
        rate: errors by what was said; it may exceed 1. None where nothing was said.
        interval: where it lies with other utterances; None where not measured.
        substitutions: words, or characters, that became others.
        deletions: that were left out.
        insertions: that nobody said.
        total: that were said.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rate: float | None
    interval: Interval | None
    substitutions: int
    deletions: int
    insertions: int
    total: int


@dataclass(frozen=True)
class Errors:
    """What went wrong in each utterance, [n] each.

    Attributes:
        substitutions: words, or characters, that became others.
        deletions: that were left out.
        insertions: that nobody said.
        totals: that were said.
    """

    substitutions: Counts
    deletions: Counts
    insertions: Counts
    totals: Counts

    @property
    def errors(self) -> Counts:
        """All errors of each utterance."""
        return self.substitutions + self.deletions + self.insertions

    def of(self, chosen: NDArray[np.bool_]) -> Errors:
        """Return those of the utterances that ``chosen`` [n] marks."""
        return Errors(self.substitutions[chosen], self.deletions[chosen], self.insertions[chosen], self.totals[chosen])

    def rate(self, draw: Draw) -> Rate:
        """Return the rate over all utterances: long ones weigh more."""
        total = int(self.totals.sum())
        return Rate(
            rate=int(self.errors.sum()) / total if total else None,
            interval=draw.interval(self.errors, self.totals) if total else None,
            substitutions=int(self.substitutions.sum()),
            deletions=int(self.deletions.sum()),
            insertions=int(self.insertions.sum()),
            total=total,
        )


def errors_of(alignments: Sequence[Alignment]) -> Errors:
    """Return what went wrong in each utterance, by its alignment."""
    rows = np.array([_counted(alignment) for alignment in alignments], np.int64).reshape(len(alignments), 4)
    return Errors(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])


def _counted(alignment: Alignment) -> tuple[int, int, int, int]:
    counts = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for step in alignment:
        counts[step.kind] += len(step.hypothesis) if step.kind == "insert" else len(step.reference)
    wrong = counts["substitute"], counts["delete"], counts["insert"]
    return *wrong, counts["equal"] + counts["substitute"] + counts["delete"]

"""Which step was the best, and whether to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from visionpeft.errors import TrainingError


@dataclass
class Choice:
    """The evaluations so far and what follows from them.

    Attributes:
        metric: the figure to compare, larger is better; None: nothing is compared.
        history: {"step": …, figures} of every evaluation, in order.
        best_step: the eligible step with the largest metric, the first of equals; None while there is none.
        best_value: its metric.
        misses: evaluations in a row since then.
    """

    metric: str | None
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    best_step: int | None = None
    best_value: float | None = None
    misses: int = 0

    def take(self, step: int, figures: Mapping[str, float]) -> bool:
        """Note an evaluation and return whether it is the best so far.

        The untrained step 0 is noted only; ``eligible`` = 0 and a metric that is not a number never win.

        Raises:
            TrainingError: the metric is not among the figures.
        """
        self.history.append({"step": step, **figures})
        if self.metric is None or step == 0:
            return False
        if self.metric not in figures:
            raise TrainingError(f"no '{self.metric}' was evaluated, which chooses the best step: {', '.join(figures)}.")
        value = figures[self.metric]
        allowed = figures.get("eligible", 1.0) >= 1.0 and value == value  # which NaN is not
        if allowed and (self.best_value is None or value > self.best_value):
            self.best_step, self.best_value, self.misses = step, value, 0
            return True
        self.misses += 1
        return False

    def exhausted(self, patience: int | None) -> bool:
        """Return whether ``patience`` evaluations in a row brought nothing better."""
        return patience is not None and self.misses >= patience

    @staticmethod
    def from_json(values: Mapping[str, Any], metric: str | None) -> Choice:
        """Return what ``to_json`` gave, to be gone on with by ``metric``; another metric than before begins anew."""
        known = Choice(**dict(values))
        return known if known.metric == metric else Choice(metric, known.history)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

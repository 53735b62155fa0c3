"""Learning-rate schedules: factors that are functions of the step, so that nothing about them is ever saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from visionpeft.errors import did_you_mean

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""Name -> factor of the learning rate at the share ``done`` in [0, 1) of the steps after the warmup."""


def schedule_factor(name: str, step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at ``step`` (from 0) of ``steps``, after a linear rise over ``warmup``."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[name]((step - warmup) / max(1, steps - warmup))


def unknown(kind: str, name: str, options: Iterable[str]) -> str:
    """Return the message about a name that is in no table: the name, the nearest one, all there are."""
    return f"unknown {kind} '{name}'.{did_you_mean(name, options)} There are: {', '.join(sorted(options))}"

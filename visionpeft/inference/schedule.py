"""Weights that change over the denoising steps: ``0@0 -> 0.8@0.4`` is 0 at the start and 0.8 from two fifths on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from visionpeft.adapters.weights import Weights
from visionpeft.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

ARROW, AT = "->", "@"


@dataclass(frozen=True)
class Schedule:
    """A weight over the denoising steps: straight lines between points, level before the first and after the last.

    Two points at the same share are a jump; at the share itself the second counts.

    Attributes:
        points: (share of the steps, weight), at least one, shares from 0 (the first step) to 1 (the last), ascending.

    Raises:
        ConfigError: there is no point, a number is not finite, or the shares leave 0 to 1 or go back.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.points]
        if not self.points or not all(isfinite(number) for point in self.points for number in point):
            raise ConfigError(f"the schedule '{self}' should be finite weights at shares of the steps: 0@0 -> 0.8@0.4.")
        if shares != sorted(shares) or not 0 <= shares[0] <= shares[-1] <= 1:
            raise ConfigError(f"the schedule '{self}': shares of the steps go from 0 to 1, in ascending order.")

    def at(self, share: float) -> float:
        """The weight at a share of the steps, 0 to 1."""
        before = [point for point in self.points if point[0] <= share]
        after = [point for point in self.points if point[0] > share]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (start, low), (end, high) = before[-1], after[0]
        return low + (share - start) / (end - start) * (high - low)

    def __str__(self) -> str:
        """The text that :func:`schedule_of` reads."""
        return f" {ARROW} ".join(f"{weight!r}{AT}{share!r}" for share, weight in self.points)


ScheduleLike = Schedule | str | Mapping[float, float]
StepWeight = float | ScheduleLike
PartWeights = StepWeight | Mapping[str, StepWeight]
"""An adapter's weight: one, or a table by dotted prefix."""
StepWeights = str | Sequence[str] | Mapping[str, PartWeights]
"""What ``AdapterManager.activate`` takes, where any number may be a schedule: {"robot": {"unet": "0@0 -> 1@0.5"}}."""


def schedule_of(value: ScheduleLike) -> Schedule:
    """Return a schedule from its text or its table.

    Args:
        value: ``"0@0 -> 0.8@0.4"``, weights at shares of the steps; or {0: 0.0, 0.4: 0.8}, share -> weight.

    Raises:
        ConfigError: it is not of that form, or the shares leave 0 to 1 or go back.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        return Schedule(tuple(sorted((float(share), float(weight)) for share, weight in value.items())))
    return Schedule(tuple(_point(text, value) for text in value.split(ARROW)))


def step_share(step: int, steps: int) -> float:
    """The share of the steps that a step stands for: 0 is the first of them and 1 the last."""
    return step / (steps - 1) if steps > 1 else 0.0


def weights_at(weights: StepWeights, share: float) -> Weights:
    """Return the weights at a share of the steps, as ``AdapterManager.activate`` takes them.

    Raises:
        ConfigError: a schedule that cannot be read.
    """
    if not isinstance(weights, Mapping):
        return weights
    return {name: _layers_at(weight, share) for name, weight in weights.items()}


def ever_acts(weight: PartWeights) -> bool:
    """Whether an adapter's weight is other than 0 at any place in any step."""
    if is_table(weight):
        return any(ever_acts(value) for value in weight.values())
    return weight != 0 if isinstance(weight, int | float) else any(value for _, value in schedule_of(weight).points)


def plain_weight(weight: PartWeights) -> float | str | dict[str, float | str]:
    """Return an adapter's weight as JSON has it: numbers as they are, schedules as text."""
    if is_table(weight):
        return {prefix: _plain(value) for prefix, value in weight.items()}
    return _plain(weight)


def is_table(weight: PartWeights) -> TypeIs[Mapping[str, StepWeight]]:
    """Whether a weight is a table by component or block, and no schedule's table, whose keys are numbers."""
    return isinstance(weight, Mapping) and all(isinstance(key, str) for key in weight)


def _layers_at(weight: PartWeights, share: float) -> float | dict[str, float]:
    if is_table(weight):
        return {prefix: _number_at(value, share) for prefix, value in weight.items()}
    return _number_at(weight, share)


def _number_at(weight: StepWeight, share: float) -> float:
    return weight if isinstance(weight, int | float) else schedule_of(weight).at(share)


def _plain(weight: StepWeight) -> float | str:
    return weight if isinstance(weight, int | float) else str(schedule_of(weight))


def _point(text: str, whole: str) -> tuple[float, float]:
    weight, _, share = text.partition(AT)
    try:
        return float(share), float(weight)
    except ValueError as error:
        raise ConfigError(
            f"the schedule '{whole}': '{text.strip()}' should be a weight and the share of the steps where it holds,"
            f" as in 0@0 {ARROW} 0.8@0.4."
        ) from error

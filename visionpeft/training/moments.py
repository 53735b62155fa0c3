"""What an optimizer remembers, parameter by parameter: a checkpoint does not say how the weights lay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from visionpeft.training.flat import FlatWeights

States = dict[int, dict[str, Any]]
"""Number of a parameter -> what is remembered of it, by name."""


def moments_of(optimizer: Optimizer, weights: FlatWeights | None) -> States:
    """Return what the optimizer remembers of each parameter.

    Args:
        optimizer: over the parameters, or over the flat groups of ``weights``.
        weights: where the groups are flat.
    """
    states: States = optimizer.state_dict()["state"]
    if weights is None:
        return states
    found: States = {}
    for group, values in states.items():
        mine = weights.members(group)
        parts = {key: weights.taken_apart(group, value) for key, value in values.items()}
        found |= {number: {key: parts[key][at] for key in values} for at, number in enumerate(mine)}
    return found


def remember(optimizer: Optimizer, states: Mapping[int, Mapping[str, Any]], weights: FlatWeights | None) -> None:
    """Give the optimizer what ``moments_of`` said of every parameter."""
    given: Mapping[int, Mapping[str, Any]] = states
    if weights is not None:
        given = {}
        for group in range(len(optimizer.param_groups)):
            mine = [states[number] for number in weights.members(group)]
            given[group] = {key: weights.put_together(group, [one[key] for one in mine]) for key in mine[0]}
    optimizer.load_state_dict({"state": given, "param_groups": optimizer.state_dict()["param_groups"]})

"""A run that steps down a setting where memory runs out, and goes on from the last whole step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from visionpeft.compute.memory import explain
from visionpeft.errors import ResourceError
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import Context, Task


class Rung(NamedTuple):
    """One way to take less.

    Attributes:
        name: for people.
        lower: settings a step smaller in this way; None where they are as small as they get.
        pull: what the task's models need to be told.
    """

    name: str
    lower: Callable[[TrainConfig], TrainConfig | None]
    pull: Callable[[Task, Context], None]


def halved(config: TrainConfig) -> TrainConfig | None:
    """Half of the micro-batch and twice as many of them: the same samples in a step."""
    if config.batch_size % 2:
        return None
    half, twice = config.batch_size // 2, config.gradient_accumulation * 2
    return config.model_copy(update={"batch_size": half, "gradient_accumulation": twice})


def recomputing(config: TrainConfig) -> TrainConfig | None:
    """Activations computed again in the backward pass, where no other lever was pulled on the blocks."""
    if config.gradient_checkpointing or config.memory.stream or config.memory.offload:
        return None
    return config.model_copy(update={"gradient_checkpointing": True})


def lower(ladder: Sequence[Rung], config: TrainConfig) -> tuple[Rung, TrainConfig] | None:
    """Return the first rung of a ladder that goes lower, and the settings there; None at its foot."""
    for rung in ladder:
        found = rung.lower(config)
        if found is not None:
            return rung, found
    return None


def ran_out(error: BaseException) -> bool:
    """Whether an error, or what it came of, is memory that ran out."""
    return isinstance(explain(error), ResourceError)


def let_go(device: torch.device) -> None:
    """Give back what is not in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

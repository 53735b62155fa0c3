"""How a run takes less memory while it runs: the rungs of its ladder, in order."""

from __future__ import annotations

from visionpeft.compute.lean import Lean
from visionpeft.compute.thrift import Thrift
from visionpeft.training.settings import TrainConfig
from visionpeft.training.stepdown import Rung, halved, recomputing
from visionpeft.training.task import Context, Task


def _nothing(task: Task, context: Context) -> None:
    del task, context


def _recompute(task: Task, context: Context) -> None:
    """Let the models in training, which are where they belong already, compute activations again."""
    for model in task.components.values():
        Lean(model, context.device, Thrift(recompute=1.0))


def _halved_in_pairs(config: TrainConfig) -> TrainConfig | None:
    return None if config.batch_size % 4 else halved(config)


def ladder_of(*, pairs: bool = False) -> tuple[Rung, ...]:
    """Return the rungs, from what costs least.

    Args:
        pairs: whether samples of a micro-batch are mixed in pairs, so that it must stay even.
    """
    return (
        Rung("half of the micro-batch, twice as many of them", _halved_in_pairs if pairs else halved, _nothing),
        Rung("activations computed again", recomputing, _recompute),
    )

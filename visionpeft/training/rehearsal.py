"""A run's preparation and its steps without values: what they would allocate and compute on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from visionpeft.adapters.layers import Branch
from visionpeft.compute.blocks import blocks_of
from visionpeft.compute.planning.ledger import Ledger, Trace
from visionpeft.compute.planning.pretend import Pretend, as_on
from visionpeft.compute.precision import Precision
from visionpeft.compute.tensors import tensors_in
from visionpeft.compute.thrift import MemoryConfig, Thrift
from visionpeft.errors import ConfigError
from visionpeft.progress import SILENT
from visionpeft.training.batches import BatchPlan
from visionpeft.training.optim import OptimizerConfig
from visionpeft.training.rng import StepRng
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import Context, Task
from visionpeft.training.trainer import Trainer


@dataclass(frozen=True)
class Rehearsal:
    """What was done.

    Attributes:
        trace: with the stages "preparing", "batch", "first" (the end of a step, which makes the optimizer's state),
            then "forward", "backward" and "update" of a step, and the names of what is done aside.
        weights: number of the entry of each frozen weight that stays on the device -> its bytes there.
        blocks: of the models in training, the entries of each block's frozen weights, in order of use.
        parameters: number of trained ones.
        inputs: bytes of a micro-batch.
    """

    trace: Trace
    weights: Mapping[int, int]
    blocks: tuple[frozenset[int], ...]
    parameters: int
    inputs: int


class ShapeRng(StepRng):
    """Draws without values."""

    def normal(self, shape: Any, stream: str = "noise") -> Tensor:
        """Return [n, *shape] float32."""
        del stream
        return torch.empty(self.global_batch, *shape, device=self.device)[self.slots]

    def uniform(self, stream: str, shape: Any = ()) -> Tensor:
        """Return [n, *shape] float32."""
        return self.normal(shape, stream)

    def integers(self, high: int, stream: str) -> Tensor:
        """Return [n] long."""
        del high, stream
        return torch.empty(self.global_batch, dtype=torch.long, device=self.device)[self.slots]


def rehearse(
    task: Task, models: Mapping[str, nn.Module], config: TrainConfig, precision: Precision, pretend: Pretend,
    output: Path, asides: Mapping[str, Callable[[], None]] | None = None,
) -> Rehearsal:  # fmt: skip
    """Prepare a task whose models have no values, make a step of it, and what is done aside.

    Raises:
        ConfigError: the model's way depends on values, which are not there.

    Args:
        task: whose models are on the meta device.
        models: all of its base, by name.
        config: of the run. What is streamed or offloaded is here as everything else: on the device.
        precision: of the steps.
        pretend: is active, and was while the task was built.
        output: a folder that is not written to.
        asides: what is done between steps, in evaluation mode and without gradients, by name.
    """
    thrift = Thrift(config.thrift.recompute, MemoryConfig(base=config.memory.base), config.attention)
    context = Context(cast(Any, None), pretend.device, precision.dtype, 0, 1, config.seed, output, SILENT, thrift)
    with Ledger(here=pretend.here) as ledger, as_on(pretend.device):
        try:
            ledger.stage = "preparing"
            task.prepare(context)
            return _Rehearsing(task, models, config, precision, pretend, ledger).steps(asides or {})
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            raise ConfigError(f"{task.name}: this base cannot be planned, for its model looks at values.") from error


class _Rehearsing:
    """A step of a prepared task."""

    def __init__(
        self, task: Task, models: Mapping[str, nn.Module], config: TrainConfig, precision: Precision,
        pretend: Pretend, ledger: Ledger,
    ) -> None:  # fmt: skip
        # a scale of the loss looks at values, and takes next to nothing
        self.task, self.models, self.config, self.precision = task, models, config, replace(precision, scaled=False)
        self.pretend, self.ledger = pretend, ledger
        # accumulation repeats a micro-batch: nothing of it is new
        self.plan = BatchPlan(config.seed, task.samples(), config.batch_size, 1, 0, 1)

    def steps(self, asides: Mapping[str, Callable[[], None]]) -> Rehearsal:
        """Make a step, do what is done aside, and return what was written down."""
        ledger, config = self.ledger, self.config
        for component in self.task.components.values():
            component.train()
        weights = {ledger.enter(p): p.untyped_storage().nbytes() for p in self._frozen(self.models.values())}
        made_up = STATES.get(config.optimizer.name)
        plain = config.optimizer if made_up is None else OptimizerConfig(name="sgd", momentum=0)
        trainer = Trainer(
            self.task.trainable(), config.model_copy(update={"optimizer": plain}), self.precision, 1, self.task.rates()
        )
        components = self.task.components.values()
        branches = [part for model in components for part in model.modules() if isinstance(part, Branch)]
        trainer.serve(branches, autocast=self.task.autocast)
        sizes_of = [] if made_up is None else [made_up(p) for p in trainer.parameters.values()]
        state = [torch.empty(size, dtype=torch.uint8, device=trainer.device) for one in sizes_of for size in one]
        ledger.stage = "first"
        trainer.begin(0)
        trainer.update()
        batch = self._step(trainer)
        self._aside(trainer, asides)
        del state
        blocks = [{ledger.number(p) for p in self._frozen([block])} for block in self._blocks()]
        known = tuple(frozenset(number for number in block if number in weights) for block in blocks)
        count = sum(parameter.numel() for parameter in trainer.parameters.values())
        return Rehearsal(ledger.trace, weights, known, count, sum(t.nbytes for t in tensors_in(batch)))

    def _frozen(self, modules: Any) -> Iterator[Tensor]:
        """Frozen weights and buffers on the device."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if not tensor.requires_grad and self.pretend.here(tensor):
                    yield tensor

    def _blocks(self) -> list[nn.Module]:
        return [block for component in self.task.components.values() for block in blocks_of(component).values()]

    def _step(self, trainer: Trainer) -> Any:
        """Make one step; return its micro-batch."""
        ledger, plan, device = self.ledger, self.plan, self.pretend.device
        positions = plan.micro(0)[0]
        ledger.stage = "batch"
        batch = self.task.batch(positions)
        slots = torch.empty(len(positions), dtype=torch.long, device=device)
        ledger.stage = "forward"
        trainer.begin(0)
        with self.precision.autocast(device, needed=self.task.autocast):
            out = self.task.loss(batch, ShapeRng(plan.seed, 0, slots, plan.global_batch, device))
        ledger.stage = "backward"
        trainer.backward(out)
        del out
        ledger.stage = "update"
        trainer.exchange()
        trainer.update()
        return batch

    def _aside(self, trainer: Trainer, asides: Mapping[str, Callable[[], None]]) -> None:
        for model in self.models.values():
            model.eval()
        with torch.no_grad():
            for name, work in asides.items():
                self.ledger.stage = name
                with trainer.averaged():
                    work()


def _eight_bit(parameter: Tensor) -> list[int]:
    """Two moments in bytes, and two float32 scales for each 256 elements, as bitsandbytes keeps them."""
    count = parameter.numel()
    return [count, count, 4 * (-(-count // 256)), 4 * (-(-count // 256))]


def _factored(parameter: Tensor) -> list[int]:
    """Second moments of rows and columns; of vectors whole."""
    if parameter.ndim < 2:
        return [4 * parameter.numel()]
    return [4 * parameter.numel() // parameter.shape[-1], 4 * parameter.numel() // parameter.shape[-2]]


STATES: Mapping[str, Callable[[Tensor], list[int]]] = {"adamw8bit": _eight_bit, "adafactor": _factored}
"""Optimizers that look at values, and so cannot be rehearsed -> bytes of the tensors that they keep for a parameter."""

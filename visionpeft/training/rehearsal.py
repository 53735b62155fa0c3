"""A run's preparation and its steps without values: what they would allocate and compute on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from visionpeft.compute.planning.ledger import Ledger, Trace
from visionpeft.compute.planning.pretend import Pretend, recomputed_anywhere
from visionpeft.compute.precision import Precision
from visionpeft.compute.tensors import tensors_in
from visionpeft.compute.thrift import BaseWeights, MemoryConfig, Thrift
from visionpeft.progress import SILENT
from visionpeft.training.batches import BatchPlan
from visionpeft.training.optim import OptimizerConfig
from visionpeft.training.rng import StepRng
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import Context, Task
from visionpeft.training.trainer import Trainer

PACKED: Mapping[BaseWeights, float] = {"fp8": 0.5, "int8": 0.5, "nf4": 0.25 + 1 / 128}
"""What a weight of two bytes takes in these forms, scales included."""


@dataclass(frozen=True)
class Rehearsal:
    """What was done.

    Attributes:
        trace: with the stages "preparing", "batch", "first" (a step that makes the optimizer's state), and then
            "forward", "backward" and "update" of one like all that follow.
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
    output: Path,
) -> Rehearsal:  # fmt: skip
    """Prepare a task whose models have no values, and make two steps of it.

    Args:
        task: whose models are on the meta device.
        models: all of its base, by name.
        config: of the run. What is streamed or offloaded is here as everything else: on the device.
        precision: of the steps.
        pretend: is active, and was while the task was built.
        output: a folder that is not written to.
    """
    thrift = Thrift(config.thrift.recompute, MemoryConfig(), config.attention)
    context = Context(cast(Any, None), pretend.device, precision.dtype, 0, 1, config.seed, output, SILENT, thrift)
    with Ledger(here=pretend.here) as ledger, recomputed_anywhere():
        ledger.stage = "preparing"
        task.prepare(context)
        return _Rehearsing(task, models, config, precision, pretend, ledger).steps()


class _Rehearsing:
    """Steps of a prepared task."""

    def __init__(
        self, task: Task, models: Mapping[str, nn.Module], config: TrainConfig, precision: Precision,
        pretend: Pretend, ledger: Ledger,
    ) -> None:  # fmt: skip
        self.task, self.models, self.config, self.precision = task, models, config, precision
        self.pretend, self.ledger = pretend, ledger
        # accumulation repeats a micro-batch: nothing of it is new
        self.plan = BatchPlan(config.seed, task.samples(), config.batch_size, 1, 0, 1)

    def steps(self) -> Rehearsal:
        """Make two steps and return what was written down."""
        ledger, config = self.ledger, self.config
        for component in self.task.components.values():
            component.train()
        weights = {ledger.enter(p): p.untyped_storage().nbytes() for p in self._frozen(self.models.values())}
        sizes = self._pack(weights)
        eight = config.optimizer.name == "adamw8bit"
        plain = OptimizerConfig(name="sgd", momentum=0) if eight else config.optimizer
        trainer = Trainer(
            self.task.trainable(), config.model_copy(update={"optimizer": plain}), self.precision, 1, self.task.rates()
        )
        state = eight_bit_state(trainer) if eight else []
        self._step(trainer, ("first", "first", "first"))
        batch = self._step(trainer, ("forward", "backward", "update"))
        del state
        blocks = [{ledger.number(p) for p in self._frozen([block])} for block in self._blocks()]
        known = tuple(frozenset(number for number in block if number in sizes) for block in blocks)
        count = sum(parameter.numel() for parameter in trainer.parameters.values())
        return Rehearsal(ledger.trace, sizes, known, count, sum(t.nbytes for t in tensors_in(batch)))

    def _pack(self, weights: Mapping[int, int]) -> dict[int, int]:
        """Bytes of each frozen weight as it is kept; those in fewer bits are noted as such."""
        base = self.config.memory.base
        if base == "auto":
            return dict(weights)
        layers = [m for c in self.task.components.values() for m in c.modules() if isinstance(m, nn.Linear)]
        found = {self.ledger.number(layer.weight) for layer in layers if not layer.weight.requires_grad}
        self.ledger.packed = {number for number in found if number is not None and number in weights}
        return {n: int(size * PACKED[base]) if n in self.ledger.packed else size for n, size in weights.items()}

    def _frozen(self, modules: Any) -> Iterator[Tensor]:
        """Frozen weights and buffers on the device."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if not tensor.requires_grad and self.pretend.here(tensor):
                    yield tensor

    def _blocks(self) -> list[nn.Module]:
        return [block for component in self.task.components.values() for block in blocks_of(component)]

    def _step(self, trainer: Trainer, stages: tuple[str, str, str]) -> Any:
        """Make one step; return its micro-batch."""
        ledger, plan, device = self.ledger, self.plan, self.pretend.device
        positions = plan.micro(0)[0]
        ledger.stage = "batch"
        batch = self.task.batch(positions)
        ledger.stage = stages[0]
        trainer.begin(0)
        slots = torch.empty(len(positions), dtype=torch.long, device=device)
        with self.pretend.autocast(self.precision.dtype):
            out = self.task.loss(batch, ShapeRng(plan.seed, 0, slots, plan.global_batch, device))
        ledger.stage = stages[1]
        trainer.backward(out)
        del out
        ledger.stage = stages[2]
        trainer.exchange()
        trainer.update()
        return batch


def eight_bit_state(trainer: Trainer) -> list[Tensor]:
    """The moments of AdamW in 8 bits, as bitsandbytes keeps them: two bytes an element, two scales for each 256."""
    kept: list[Tensor] = []
    for parameter in trainer.parameters.values():
        count, device = parameter.numel(), trainer.device
        kept += [torch.empty(2 * count, dtype=torch.uint8, device=device), torch.empty(count // 128 + 2, device=device)]
    return kept


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a model is a stack of: what its outermost lists of modules hold, in its order."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(child)
            else:
                look(child)

    look(model)
    return found

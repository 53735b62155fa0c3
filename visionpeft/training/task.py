"""What the engine asks of a task: samples, a loss, a metric and previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter
from visionpeft.compute.thrift import Thrift
from visionpeft.data.order import Position
from visionpeft.progress import Progress
from visionpeft.training.processes import ALONE, Processes
from visionpeft.training.rng import StepRng

if TYPE_CHECKING:
    from accelerate import Accelerator

    from visionpeft.compute.sharding import Sharding


@dataclass
class StepOutput:
    """What a micro-batch gives: a sum and a count, never a mean, so that any splitting of a batch gives one result.

    Attributes:
        loss_sum: scalar on the device, the sum of the losses; it is differentiated.
        count: scalar on the device, how many terms the sum has (samples, boxes, tokens; weights are allowed).
        logs: scalars on the device for the log, shown as their mean over micro-batches, steps and processes.
    """

    loss_sum: Tensor
    count: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class Artifact:
    """Something a preview made.

    Attributes:
        name: short and unique within a preview, for trackers.
        path: the file that the task wrote, a picture where it ends in .png.
        caption: what is to be seen.
    """

    name: str
    path: Path
    caption: str = ""


@dataclass(frozen=True)
class Context:
    """Where and how a task runs; what the engine knows before the first step.

    Attributes:
        accelerator: of the run.
        device: where the batches and models belong.
        dtype: what a step computes in; None is float32.
        rank: this process, 0 to world - 1; 0 is the main one.
        world: number of processes.
        seed: of the run.
        output: the run's folder.
        progress: for phases that take more than a second.
        thrift: how the task's models are kept, and what of a step is.
        global_batch: samples of a step over all micro-batches and processes.
        sharding: shares frozen models out over the processes; None: each has all of them.
    """

    accelerator: Accelerator
    device: torch.device
    dtype: torch.dtype | None
    rank: int
    world: int
    seed: int
    output: Path
    progress: Progress
    thrift: Thrift = field(default_factory=Thrift)
    global_batch: int = 1
    sharding: Sharding | None = None

    @property
    def processes(self) -> Processes:
        """The processes that share out what each of them would have to do; alone where the base is shared out."""
        return Processes(self.rank, self.world) if self.sharding is None else ALONE

    def turns(self) -> AbstractContextManager[Any]:
        """Return the context in which models are run outside of steps; all processes enter it.

        They do so at once, or, where the base is shared out, the main one first and the others when it is done.
        """
        return nullcontext() if self.sharding is None else self.sharding.main_first()


class Task(Protocol):
    """A kind of training. The engine calls ``prepare`` first, everything else after it.

    Attributes:
        name: for messages and trackers.
        metric: the key of ``evaluate()`` that chooses the best checkpoint, larger is better; None: the last is taken.
        components: the models in training, by name; the engine puts them into training mode, and into evaluation mode
            around ``evaluate``, ``preview`` and ``capture``.
        unrecordable: why ``loss`` cannot be recorded as a CUDA graph, for a line to the user; "" where it can.
        autocast: whether ``loss`` needs autocast to compute in the run's type; not where its models are in it.
    """

    name: str
    metric: str | None
    unrecordable: str
    autocast: bool

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The models in training, by name."""
        ...

    def prepare(self, context: Context) -> None:
        """Move models to the device, compute caches, make what is missing; processes share the work."""
        ...

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by group: float32, on one device, in an order that never changes.

        A group is a component ("unet") or a part of one ("model.layers.3"); learning rates are given to groups.
        """
        ...

    def rates(self) -> Mapping[str, float]:
        """Return what the learning rate of a group of ``trainable()`` is multiplied with; 1 for those not named."""
        ...

    def samples(self) -> int:
        """Return how many training samples an epoch has."""
        ...

    def batch(self, positions: Sequence[Position]) -> Any:
        """Return the micro-batch of these samples on the device: a function of the positions and the seed alone."""
        ...

    def loss(self, batch: Any, rng: StepRng) -> StepOutput:
        """Return the loss of a micro-batch, on the device, without host synchronisation.

        All randomness comes from ``rng``; dropout may use torch's generator, which is seeded for each micro-batch.
        """
        ...

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the names of these samples' files, for the message about a loss that is not a number."""
        ...

    def evaluate(self, step: int) -> dict[str, float]:
        """Return figures of the adapter after ``step`` steps, drawn with generators of its own.

        Called on all processes, which share the work; the figures of the main one count. The key ``eligible`` (0 or 1),
        where present, says whether the step may be chosen as the best.
        """
        ...

    def preview(self, step: int) -> Sequence[Artifact]:
        """Write previews below the run's folder, drawn with generators of their own.

        Called on all processes, which share the work; the main one writes and returns them.
        """
        ...

    def capture(self) -> Adapter:
        """Return a copy of what is trained, on the CPU."""
        ...

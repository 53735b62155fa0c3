"""A task on its device, with what its steps change and what makes them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator

from visionpeft.adapters.layers import Branch
from visionpeft.compute.recorded import Recorder
from visionpeft.compute.sharding import SHARDED
from visionpeft.progress import Progress
from visionpeft.training.attention import attention_of
from visionpeft.training.batches import BatchPlan
from visionpeft.training.checkpoint import Checkpoint
from visionpeft.training.fingerprint import require_same
from visionpeft.training.log import Window
from visionpeft.training.processes import processes_of
from visionpeft.training.remedies import memory_explained
from visionpeft.training.rng import mix_seed
from visionpeft.training.settings import TrainConfig
from visionpeft.training.start import launched_precision, open_sharding
from visionpeft.training.stepdown import Rung, let_go
from visionpeft.training.steps import Steps
from visionpeft.training.task import Context, Task
from visionpeft.training.trainer import Trainer


class Prepared:
    """What a run is made with.

    Args:
        task: is prepared now.
        config: the run's settings.
        accelerator: the processes.
        output: the run's folder.
        progress: shows what is done.

    Attributes:
        config: the settings as they are; smaller than those that were given where the run stepped down.
        device: where steps compute.
        processes: of the run.
        precision: of the steps.
        sharding: shares the base out over the processes; None: each has all of it.
        context: what the task was told.
        trainer: what steps change.
        attention: the kernel that attends.
        plan: which samples a step sees.
        steps: makes them.
        window: gathers the log's means.
    """

    def __init__(
        self, task: Task, config: TrainConfig, accelerator: Accelerator, output: Path, progress: Progress
    ) -> None:
        self.config, self.device, self.window = config, accelerator.device, Window()
        self._task, self._progress = task, progress
        self.processes = processes_of(accelerator)
        self.precision = launched_precision(config, accelerator)
        rank, world = self.processes.rank, self.processes.world
        self.sharding = open_sharding(config, self.precision, task.components.values(), accelerator)
        self.context = Context(
            accelerator, self.device, self.precision.dtype, rank, world, config.seed, output, progress, config.thrift,
            global_batch=config.global_batch(world), sharding=self.sharding,
        )  # fmt: skip
        torch.manual_seed(mix_seed(config.seed, "prepare"))
        with self.explained("preparing the task"):
            task.prepare(self.context)
        self.trainer = Trainer(task.trainable(), config, self.precision, world, task.rates())
        components = task.components.values()
        branches = [part for model in components for part in model.modules() if isinstance(part, Branch)]
        self.trainer.serve(branches, autocast=task.autocast)
        self._lay_out_steps()
        for module in components:
            module.train()
        first = self.plan.micro(0)[0]
        with self.explained("looking at the attention of a batch"):
            self.attention = attention_of(task, config, first, self.precision, accelerator, progress)
        let_go(self.device)  # what preparing needed is the steps' now, whose stream would not take it

    def _lay_out_steps(self) -> None:
        """Make the plan of batches and what makes steps, by the settings as they are."""
        config, processes = self.config, self.processes
        self.plan = BatchPlan(
            config.seed, self._task.samples(), config.batch_size, config.gradient_accumulation, processes.rank,
            processes.world,
        )  # fmt: skip
        recorder = Recorder(self.device) if self.device.type == "cuda" and config.record == "auto" else None
        if recorder is not None and self.sharding is not None:
            self._progress.say(SHARDED)
            recorder = None
        self.steps = Steps(self._task, self.trainer, self.plan, self.precision, self.window, self._progress, recorder)

    def restore(self, begun: Checkpoint) -> None:
        """Put what steps change where a checkpoint left it."""
        require_same({"samples": begun.state["samples"]}, {"samples": self.plan.samples})
        tensors = begun.tensors()
        windowed = {name: tensors.pop(name) for name in list(tensors) if name.startswith("window.")}
        if self.processes.main:  # it was saved as the sum over all of them
            self.window.restore(windowed, self.device)
        self.trainer.restore(tensors, begun.state["numbers"])

    def step_down(self, step: int, rung: Rung, config: TrainConfig) -> None:
        """Go on from ``step`` with smaller settings: the same samples in a step, the same order, nothing lost."""
        del self.steps  # and what was recorded
        self._progress.say(
            f"out of memory in step {step + 1}: {rung.name} from here on (train.batch_size={config.batch_size}, "
            f"train.gradient_accumulation={config.gradient_accumulation}, "
            f"train.gradient_checkpointing={config.gradient_checkpointing}); no step is lost."
        )
        rung.pull(self._task, self.context)
        self.config = config
        let_go(self.device)
        self._lay_out_steps()

    def explained(self, work: str) -> AbstractContextManager[None]:
        """Return the context in which memory that runs out is told with what to change."""
        return memory_explained(work, self.config.batch_size, self.config.thrift.recompute > 0)

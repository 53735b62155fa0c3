"""The loop that trains every task."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from visionpeft.adapters.archive import Adapter
from visionpeft.compute.attending import attending
from visionpeft.compute.recorded import Recorder
from visionpeft.errors import TrainingError
from visionpeft.progress import SILENT, Progress
from visionpeft.safefile import write_atomically
from visionpeft.training.attention import attention_of
from visionpeft.training.batches import BatchPlan
from visionpeft.training.checkpoint import Checkpoint
from visionpeft.training.clock import Clock
from visionpeft.training.deterministic import deterministic_kernels
from visionpeft.training.fingerprint import require_same
from visionpeft.training.interrupt import StopRequest, TrainingInterruptedError
from visionpeft.training.lock import locked
from visionpeft.training.log import Window, merge_windows
from visionpeft.training.record import FitResult, RunRecord
from visionpeft.training.remedies import memory_explained, not_a_number
from visionpeft.training.rng import mix_seed
from visionpeft.training.settings import TrainConfig
from visionpeft.training.start import beginning, launched_precision, open_accelerator
from visionpeft.training.steps import Steps
from visionpeft.training.task import Context, Task
from visionpeft.training.trainer import Trainer


def fit(
    task: Task,
    config: TrainConfig,
    output: Path,
    *,
    resume: str | Path = "never",
    preview_every: int = 0,
    progress: Progress = SILENT,
    accelerator: Accelerator | None = None,
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> FitResult:
    """Train a task, from the beginning or from a checkpoint; where it was stopped makes no difference to any bit.

    On a GPU that holds with ``config.deterministic``; otherwise some of its kernels sum in an order of their own.

    Args:
        task: what to train.
        config: how.
        output: the run's folder: log.jsonl, checkpoints/step_000400/, checkpoints/best/step_000400/.
        resume: ``never`` refuses a folder that holds a run; ``auto`` goes on from its newest whole checkpoint, or
            begins; a checkpoint's folder goes on from there.
        preview_every: steps between previews, which are also made before the first step and after the last; 0: none.
        progress: shows the steps, and lines about what was passed over.
        accelerator: the processes; None opens them from the launcher's environment.
        settings: further nested settings (JSON values) that a continued run must share with its beginning.
        files: name -> text of files that stand in the run's folder from its beginning.

    Raises:
        OutputError: the folder holds a run already, is in use, or the disk is full.
        ConfigError: a continued run has other settings.
        FileFormatError: the checkpoint named by ``resume`` is damaged.
        TrainingError: the loss or a gradient is not a number; TrainingInterruptedError: a signal asked to stop.
        ResourceError: memory ran out.
    """
    accelerator = accelerator or open_accelerator(config, output)
    progress = progress if accelerator.is_main_process else SILENT
    everything = {"train": config.fixed(accelerator.num_processes), **(settings or {})}
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(output))
        forked = [accelerator.device] if accelerator.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=forked))
        stack.enter_context(deterministic_kernels(config.deterministic))
        begun = beginning(output, resume, config.steps, everything, accelerator, progress)
        run = _Run(task, config, output, accelerator, progress, begun)
        if accelerator.is_main_process:
            for name, text in (files or {}).items():
                write_atomically(output / name, [text.encode()])
        stack.callback(run.record.close)
        run.train(everything, preview_every)
        return run.result()


class _Run:
    """One run: the task, what its steps change, and what is recorded of it.

    The trained state is put where the checkpoint ``begun`` left it.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        output: Path,
        accelerator: Accelerator,
        progress: Progress,
        begun: Checkpoint | None,
    ) -> None:
        self.task, self.config, self.accelerator, self.progress = task, config, accelerator, progress
        self.device, self.window, self.clock = accelerator.device, Window(), Clock()
        self.precision = launched_precision(config, accelerator)
        self._prepare(output)
        self.step = 0 if begun is None else begun.step
        if begun is not None:
            self._restore(begun)
        self.record = RunRecord(output, task.metric, config.model_dump(), begun, accelerator, progress)

    def _prepare(self, output: Path) -> None:
        config, accelerator = self.config, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        dtype, thrift = self.precision.dtype, config.thrift
        context = Context(accelerator, self.device, dtype, rank, world, config.seed, output, self.progress, thrift)
        torch.manual_seed(mix_seed(config.seed, "prepare"))
        with self._explained("preparing the task"):
            self.task.prepare(context)
        size, accumulation = config.batch_size, config.gradient_accumulation
        self.plan = BatchPlan(config.seed, self.task.samples(), size, accumulation, rank, world)
        self.trainer = Trainer(self.task.trainable(), config, self.precision, world, self.task.rates())
        recorder = Recorder(self.device) if self.device.type == "cuda" and config.record == "auto" else None
        self.steps = Steps(self.task, self.trainer, self.plan, self.precision, self.window, self.progress, recorder)
        for module in self.task.components.values():
            module.train()
        first = self.plan.micro(0)[0]
        with self._explained("looking at the attention of a batch"):
            self.attention = attention_of(self.task, config, first, self.precision, accelerator, self.progress)

    def _restore(self, begun: Checkpoint) -> None:
        require_same({"samples": begun.state["samples"]}, {"samples": self.plan.samples})
        tensors = begun.tensors()
        windowed = {name: tensors.pop(name) for name in list(tensors) if name.startswith("window.")}
        self.window.restore(windowed, self.device)
        self.trainer.restore(tensors, begun.state["numbers"])

    def train(self, settings: Mapping[str, Any], preview_every: int) -> None:
        """Make the steps that are left."""
        config, note = self.config, ""
        with StopRequest() as stop, attending(self.attention), self.progress.phase("training", config.steps) as bar:
            bar.advance(self.step)
            if self.step == 0:
                self._look_around(preview_every)
            self.clock.start(self.step)
            while not self._ended():
                with self._explained("training"):
                    self.steps.make(self.step)
                self.step += 1
                note = self._log_line() if self._due(config.log_every) else note
                bar.advance(1, note)
                self._look_around(preview_every)
                interrupted = self._asked_to(stop)
                if interrupted or self._due(config.checkpoint_every) or self._ended():
                    self._save(settings)
                if interrupted:
                    raise TrainingInterruptedError(f"stopped after step {self.step}, now saved; resume=auto goes on.")

    def _due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and after the last, is to be done now; 0: never."""
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    def _ended(self) -> bool:
        return self.step >= self.config.steps or self.record.choice.exhausted(self.config.early_stop)

    def _asked_to(self, stop: StopRequest) -> bool:
        """Whether to stop early; several processes agree when they meet for the log."""
        if self._ended():
            return False
        if self.plan.world == 1:
            return stop.asked
        return self._due(self.config.log_every) and any(gather_object([stop.asked]))

    def _log_line(self) -> str:
        """Write a line of the log and return what to show beside the bar."""
        self._require_numbers()
        means = merge_windows(gather_object([self.window.take()]))
        if means["gradient_norm"] == 0.0 and self.step <= self.config.log_every and not self.precision.scaled:
            raise TrainingError("no gradient reaches the trained weights: the loss does not depend on them.")
        times = self.clock.lap(self.step, self.plan.global_batch)
        rates = self.trainer.learning_rates(self.step - 1)
        self.record.line(self.step, {**means, "learning_rate": rates, **times})
        return f"loss {means['loss']:.4f}"

    def _look_around(self, preview_every: int) -> None:
        """Evaluate and preview where due: before the first step, every so many, and after the last."""
        if self.config.evaluate_every and self._due(self.config.evaluate_every):
            with self._aside("evaluating"):
                mine = self.task.evaluate(self.step) if self.accelerator.is_main_process else {}
                figures: dict[str, float] = broadcast_object_list([mine])[0]
                self.record.evaluated(self.step, figures, self.task.capture)
        if preview_every and self._due(preview_every):
            with self._aside("drawing previews"):
                if self.accelerator.is_main_process:
                    self.record.previewed(self.step, self.task.preview(self.step))
                self.accelerator.wait_for_everyone()

    def _save(self, settings: Mapping[str, Any]) -> None:
        adapter = self._captured()
        tensors = {**self.trainer.tensors(), **self.window.tensors()}
        state = {"settings": settings, "samples": self.plan.samples, "numbers": self.trainer.numbers()}
        with self.clock.paused():
            self.record.save(self.step, adapter, state, tensors, self.config.keep_checkpoints)
            self.accelerator.wait_for_everyone()

    def _captured(self) -> Adapter:
        with self._aside("copying the adapter"):
            return self.task.capture()

    def _require_numbers(self) -> None:
        bad = self.trainer.watch.first()
        if bad is not None:
            raise not_a_number(bad + 1, self.task.files(self.plan.whole(bad)), self.record.store.steps())

    def _explained(self, work: str) -> AbstractContextManager[None]:
        return memory_explained(work, self.config.batch_size, self.config.thrift.recompute > 0)

    @contextmanager
    def _aside(self, work: str) -> Generator[None]:
        """Do other work than steps, on healthy averaged weights in evaluation mode; leave no trace in the training."""
        self._require_numbers()
        modules = [module for component in self.task.components.values() for module in component.modules()]
        modes = [module.training for module in modules]
        with self.clock.paused(), self._explained(work), self.trainer.averaged(), torch.no_grad():
            try:
                for module in modules:
                    module.training = False
                yield
            finally:
                for module, mode in zip(modules, modes, strict=True):
                    module.training = mode

    def result(self) -> FitResult:
        """Return what the run came to."""
        return self.record.result(self.step, self._captured())

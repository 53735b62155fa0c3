"""The loop that trains every task."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator

from visionpeft.adapters.archive import Adapter
from visionpeft.compute.attending import attending
from visionpeft.compute.compiled import as_written
from visionpeft.errors import TrainingError
from visionpeft.progress import SILENT, Progress
from visionpeft.safefile import write_atomically
from visionpeft.training.checkpoint import Checkpoint
from visionpeft.training.clock import Clock
from visionpeft.training.compiling import compiled_blocks, compiles
from visionpeft.training.deterministic import deterministic_kernels
from visionpeft.training.guard import Guard
from visionpeft.training.interrupt import StopRequest, TrainingInterruptedError
from visionpeft.training.lock import locked
from visionpeft.training.log import merge_windows, sum_windows
from visionpeft.training.prepared import Prepared
from visionpeft.training.processes import processes_of
from visionpeft.training.record import FitResult, RunRecord
from visionpeft.training.remedies import not_a_number
from visionpeft.training.settings import TrainConfig
from visionpeft.training.start import (
    as_begun,
    beginning,
    open_accelerator,
    require_continued,
)
from visionpeft.training.stepdown import Rung, let_go, lower, ran_out
from visionpeft.training.task import Task

T = TypeVar("T")

_MEET, _RELAYED = 5.0, 5.0
"""Seconds between the meetings of several processes; and in which a launcher passes a signal on that came already."""


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
    ladder: Sequence[Rung] = (),
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
        ladder: ways to take less where memory runs out in a step, in order; without them the run ends there. It is used
            by a single process.

    Raises:
        OutputError: the folder holds a run already, is in use, or the disk is full.
        ConfigError: a continued run has other settings.
        FileFormatError: the checkpoint named by ``resume`` is damaged.
        TrainingError: the loss or a gradient is not a number; TrainingInterruptedError: a signal asked to stop.
        ResourceError: memory ran out.
        ProcessError: another of several processes failed, is gone or hangs.
    """
    accelerator = accelerator or open_accelerator(config, output)
    processes = processes_of(accelerator)
    progress = progress if processes.main else SILENT
    with ExitStack() as stack:
        stack.enter_context(Guard(processes, output))
        if processes.main:
            stack.enter_context(locked(output))
        forked = [accelerator.device] if accelerator.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=forked))
        stack.enter_context(deterministic_kernels(config.deterministic))
        begun = beginning(output, resume, processes, progress)
        config = as_begun(config, begun, processes.world, progress)
        everything = {"train": config.fixed(processes.world), **(settings or {})}
        if begun is not None:
            require_continued(begun, config.steps, everything)
        made = Prepared(task, config, accelerator, output, progress)
        if begun is not None:
            made.restore(begun)
        record = RunRecord(output, task.metric, config.model_dump(), begun, accelerator, progress)
        stack.callback(record.close)
        if processes.main:
            for name, text in (files or {}).items():
                write_atomically(output / name, [text.encode()])
        run = _Run(task, made, record, progress, begun, ladder)
        run.train(everything, preview_every)
        return run.result()


class _Run:
    """One run: what it is made with, and what is recorded of it.

    The trained state is put where the checkpoint ``begun`` left it.
    """

    def __init__(
        self, task: Task, made: Prepared, record: RunRecord, progress: Progress, begun: Checkpoint | None,
        ladder: Sequence[Rung],
    ) -> None:  # fmt: skip
        self.task, self.made, self.record, self.progress, self.ladder = task, made, record, progress, ladder
        self.processes, self.trainer = made.processes, made.trainer
        self.clock = Clock()
        self._as_written: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.step, self.meet_every = 0 if begun is None else begun.step, 1

    @property
    def config(self) -> TrainConfig:
        """The settings as they are."""
        return self.made.config

    def train(self, settings: Mapping[str, Any], preview_every: int) -> None:
        """Make the steps that are left."""
        with attending(self.made.attention), self._compiled():
            self._train(settings, preview_every)

    @contextmanager
    def _compiled(self) -> Generator[None]:
        if not compiles(self.config, self.made.device, self.config.steps - self.step):
            yield
            return
        changed = "shared out" if self.made.sharding is not None else self.config.thrift.elsewhere
        if changed:
            self.progress.say(f"blocks that are {changed} are not compiled, which makes steps slower.")
            yield
            return
        models = self.task.components.values()
        with self.made.explained("compiling"), compiled_blocks(models, self._rehearse, self.progress) as done:
            self._as_written = as_written if done else nullcontext
            yield

    def _rehearse(self) -> None:
        self.made.steps.rehearse(self.step)

    def _train(self, settings: Mapping[str, Any], preview_every: int) -> None:
        config, note = self.config, ""
        with (
            StopRequest(_RELAYED if self.processes.world > 1 else 0.0) as stop,
            self.progress.phase("training", config.steps) as bar,
        ):
            bar.advance(self.step)
            if self.step == 0:
                self._look_around(preview_every)
            self.clock.start(self.step)
            while not self._ended():
                with self.made.explained("training"):
                    while not self._made():
                        let_go(self.made.device)
                self.step += 1
                note = self._log_line() if self._due(config.log_every) else note
                bar.advance(1, note)
                self._look_around(preview_every)
                interrupted = self._asked_to(stop)
                if interrupted or self._due(config.checkpoint_every) or self._ended():
                    self._save(settings)
                if interrupted:
                    raise TrainingInterruptedError(f"stopped after step {self.step}, now saved; resume=auto goes on.")

    def _made(self) -> bool:
        """Make a step; where memory runs out in it before anything was moved, step down instead, if that can be."""
        try:
            self.made.steps.make(self.step)
        except (MemoryError, RuntimeError) as error:
            found = lower(self.ladder, self.config)
            if found is None or self.made.steps.moved or self.made.plan.world > 1 or not ran_out(error):
                raise
        else:
            return True
        self.made.step_down(self.step, *found)
        return False

    def _due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and after the last, is to be done now; 0: never."""
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    def _ended(self) -> bool:
        return self.step >= self.config.steps or self.record.choice.exhausted(self.config.early_stop)

    def _asked_to(self, stop: StopRequest) -> bool:
        """Whether to stop early; several processes agree when they meet, as they do every few seconds."""
        if self._ended():
            return False
        if self.made.plan.world == 1:
            return stop.asked
        return self._due(self.meet_every) and any(self.processes.gathered(stop.asked))

    def _log_line(self) -> str:
        """Write a line of the log and return what to show beside the bar."""
        self._require_numbers()
        means = merge_windows(self.processes.gathered(self.made.window.take()))
        if means["gradient_norm"] == 0.0 and self.step <= self.config.log_every and not self.made.precision.scaled:
            raise TrainingError("no gradient reaches the trained weights: the loss does not depend on them.")
        times = self.processes.from_main(self.clock.lap(self.step, self.made.plan.global_batch))
        self.meet_every = max(1, min(self.config.log_every, int(_MEET / times["seconds_per_step"])))
        rates = self.trainer.learning_rates(self.step - 1)
        sent = {"exchanged_bytes": self.trainer.gradients.nbytes} if self.processes.world > 1 else {}
        self.record.line(self.step, {**means, "learning_rate": rates, **times, **sent})
        return f"loss {means['loss']:.4f}"

    def _look_around(self, preview_every: int) -> None:
        """Evaluate and preview where due: before the first step, every so many, and after the last."""
        if self.config.evaluate_every and self._due(self.config.evaluate_every):
            with self._aside("evaluating"):
                figures = self._found(lambda: self.task.evaluate(self.step))
                self.record.evaluated(self.step, figures, self.task.capture)
        if preview_every and self._due(preview_every):
            with self._aside("drawing previews"):
                self.record.previewed(self.step, self._found(lambda: self.task.preview(self.step)))

    def _found(self, look: Callable[[], T]) -> T:
        """What the processes find together, or the main one alone where the base is shared out."""
        if self.made.sharding is None:
            return self.processes.from_main(look())
        with self.made.context.turns():
            mine = look() if self.processes.main else None
        return cast(T, self.processes.from_main(mine))

    def _save(self, settings: Mapping[str, Any]) -> None:
        adapter = self._captured()
        state = {"settings": settings, "samples": self.made.plan.samples, "numbers": self.trainer.numbers()}
        state["processes"] = self.processes.world
        with self.clock.paused():
            tensors = {**self.trainer.tensors(), **sum_windows(self.processes.gathered(self.made.window.tensors()))}
            self.record.save(self.step, adapter, state, tensors, self.config.keep_checkpoints)
            self.processes.wait()

    def _captured(self) -> Adapter:
        with self._aside("copying the adapter"):
            return self.task.capture()

    def _require_numbers(self) -> None:
        bad = self.trainer.watch.first()
        if bad is not None:
            raise not_a_number(bad + 1, self.task.files(self.made.plan.whole(bad)), self.record.store.steps())

    @contextmanager
    def _aside(self, work: str) -> Generator[None]:
        """Do other work than steps, on healthy averaged weights in evaluation mode; leave no trace in the training."""
        self._require_numbers()
        modules = [module for component in self.task.components.values() for module in component.modules()]
        modes = [module.training for module in modules]
        with (
            self.clock.paused(),
            self.made.explained(work),
            self.trainer.averaged(),
            self._as_written(),
            torch.no_grad(),
        ):
            try:
                for module in modules:
                    module.training = False
                yield
            finally:
                for module, mode in zip(modules, modes, strict=True):
                    module.training = mode

    def result(self) -> FitResult:
        """Return what the run came to."""
        return replace(self.record.result(self.step, self._captured()), sharding=self.made.sharding)

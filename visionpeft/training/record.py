"""What a run leaves in its folder: log, checkpoints, the best adapter; written by the main process alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

import visionpeft
from visionpeft.adapters.archive import Adapter
from visionpeft.compute.sharding import Sharding
from visionpeft.errors import FileFormatError
from visionpeft.progress import Progress
from visionpeft.training.checkpoint import Checkpoint, CheckpointStore
from visionpeft.training.choice import Choice
from visionpeft.training.lock import CHECKPOINTS, LOG
from visionpeft.training.log import RunLog
from visionpeft.training.start import best_store
from visionpeft.training.task import Artifact


@dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        steps: made in all; fewer than asked for after an early stop.
        history: {"step": …, figures} of every evaluation, in order.
        best_step: where the metric was best among eligible evaluations; None without one.
        adapter: of that step, or the last where there is none.
        last: after the last step.
        sharding: shares out the base that the task holds; None: it is whole.
    """

    steps: int
    history: tuple[dict[str, float], ...]
    best_step: int | None
    adapter: Adapter
    last: Adapter
    sharding: Sharding | None = None

    def alone(self) -> AbstractContextManager[None]:
        """Return the context in which the main process may run the task's models while the others have nothing to do.

        All processes enter it.
        """
        return nullcontext() if self.sharding is None else self.sharding.main_first()


class RunRecord:
    """The files of a run and the choice of its best step. What lies after ``begun`` is removed when it opens.

    Args:
        output: the run's folder.
        metric: what chooses the best step, larger is better; None: nothing does.
        settings: of the training, for the trackers.
        begun: the checkpoint the run goes on from, or None.
        accelerator: in whose main process the files are written, and whose trackers get the log.
        progress: is told about a lost best adapter.
    """

    def __init__(
        self,
        output: Path,
        metric: str | None,
        settings: Mapping[str, Any],
        begun: Checkpoint | None,
        accelerator: Accelerator,
        progress: Progress,
    ) -> None:
        self.output = output
        self.store, self.best = CheckpointStore(output / CHECKPOINTS), best_store(output)
        self.choice = Choice(metric)
        if begun is not None:
            self.choice = Choice.from_json(begun.state["choice"], metric)
            self._look_for_best(progress)
        kept = 0 if begun is None else begun.step
        if accelerator.is_main_process:
            self._forget_after(kept, progress)
        self.log = RunLog(output / LOG, accelerator, settings, kept) if accelerator.is_main_process else None

    def _look_for_best(self, progress: Progress) -> None:
        try:
            if self.choice.best_step is not None:
                self.best.read(self.choice.best_step)
        except FileFormatError as damage:
            progress.say(f"The best adapter so far is lost and will be chosen anew: {damage}")
            self.choice.best_step = self.choice.best_value = None

    def _forget_after(self, step: int, progress: Progress) -> None:
        """Remove what a killed run left half-written, and what lies after the step that the run goes on from."""
        for place in (self.store, self.best):
            place.clean()
        later = [number for number in self.store.steps() if number > step]
        if later:
            progress.say(f"Going on from step {step}: the checkpoints of steps {later} are removed.")
        self.store.remove(*later)
        self.best.remove(*(number for number in self.best.steps() if number > step))

    def line(self, step: int, values: Mapping[str, Any]) -> None:
        """Log the figures of training after ``step`` steps."""
        if self.log is not None:
            self.log.write(step, "train", values)

    def evaluated(self, step: int, figures: Mapping[str, float], capture: Callable[[], Adapter]) -> None:
        """Log an evaluation, and keep the adapter where it is the best so far."""
        better = self.choice.take(step, figures)
        if self.log is not None:
            self.log.write(step, "evaluate", figures)
            if better:
                self.best.save(step, capture(), {"figures": dict(figures)})

    def previewed(self, step: int, artifacts: Sequence[Artifact]) -> None:
        """Log a preview."""
        if self.log is not None:
            self.log.pictures(step, artifacts, self.output)

    def save(
        self, step: int, adapter: Adapter, state: Mapping[str, Any], tensors: Mapping[str, Tensor], keep: int
    ) -> None:
        """Write a checkpoint, then remove all but the newest ``keep`` and the best adapters that none of them knows.

        Raises:
            OutputError: the disk is full; the checkpoints before stay as they are.
        """
        if self.log is None:
            return
        self.log.sync()
        noted = {**state, "choice": self.choice.to_json(), "program": f"visionpeft {visionpeft.__version__}"}
        self.store.save(step, adapter, noted, tensors)
        self.store.remove(*self.store.steps()[:-keep])
        known = [self.store.read(kept).state["choice"]["best_step"] for kept in self.store.steps()]
        self.best.remove(*(old for old in self.best.steps() if old not in known))

    def result(self, step: int, last: Adapter) -> FitResult:
        """Return what the run came to after ``step`` steps that left the adapter ``last``."""
        choice = self.choice
        best = last if choice.best_step is None else self.best.read(choice.best_step).adapter()
        return FitResult(step, tuple(choice.history), choice.best_step, best, last)

    def close(self) -> None:
        """Close the log and the trackers."""
        if self.log is not None:
            self.log.close()

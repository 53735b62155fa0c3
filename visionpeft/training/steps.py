"""One step of training: as it is on a CPU, recorded and replayed on a GPU; to the last bit the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionpeft.compute.precision import Precision
from visionpeft.compute.recorded import NotRecordableError, Recorder, Recording
from visionpeft.compute.tensors import form_of, refill, with_tensors
from visionpeft.progress import Progress
from visionpeft.training.batches import BatchPlan
from visionpeft.training.log import Window
from visionpeft.training.rng import StandingRng, StepRng, mix_seed
from visionpeft.training.task import StepOutput, Task
from visionpeft.training.trainer import Trainer

_MOST_FORMS = 24
"""Recordings of micro-batches at most: each holds its kernels' arguments on the device, tens of MiB."""


@dataclass(frozen=True)
class _Standing:
    """A recording of micro-batches of one form, and where it finds batch and random numbers."""

    batch: Any
    rng: StandingRng
    recording: Recording


class Steps:
    """Makes the steps of a run.

    A micro-batch's forward and backward pass is recorded for each form (shapes and kinds) that batches come in, and
    what ends a step once. A batch is copied to where its form's recording reads; random numbers are drawn as ever,
    then copied too. What cannot be recorded is done as it is from then on, with a line that says why.

    Args:
        task: what is trained.
        trainer: what steps change.
        plan: which samples a step sees.
        precision: the arithmetic of the loss.
        window: gathers the log's means.
        progress: for that line.
        recorder: of a GPU; None does every step as it is.

    Attributes:
        moved: whether the present step has begun to move weights, so that it cannot be made again.
    """

    def __init__(
        self,
        task: Task,
        trainer: Trainer,
        plan: BatchPlan,
        precision: Precision,
        window: Window,
        progress: Progress,
        recorder: Recorder | None,
    ) -> None:
        self._task, self._trainer, self._plan, self._precision = task, trainer, plan, precision
        self._window, self._progress, self._recorder = window, progress, recorder
        self._forms: dict[Hashable, _Standing] = {}
        self.moved = False
        if recorder is not None and task.unrecordable:
            self._give_up(task.unrecordable)
        self._end = self._recorder.recording(self._finish) if self._recorder and trainer.recordable else None
        device = trainer.device
        slots = [[position.slot for position in micro] for micro in plan.micro(0)]
        self._slots: tuple[Tensor, ...] = torch.tensor(slots, device=device).unbind()  # the same in every step

    def rehearse(self, step: int) -> None:
        """Make a part of step ``step`` and undo it: only what libraries do at first remains."""
        trainer, plan = self._trainer, self._plan
        trainer.begin(step)
        rng = StepRng(plan.seed, step, self._slots[0], plan.global_batch, trainer.device)
        trainer.backward(self._output(self._task.batch(plan.micro(step)[0]), rng))
        trainer.begin(step)

    def make(self, step: int) -> None:
        """Make step ``step``, from 0: nothing in it waits for the device."""
        trainer, plan = self._trainer, self._plan
        self.moved = False
        trainer.begin(step)
        for number, positions in enumerate(plan.micro(step)):
            rng = StepRng(plan.seed, step, self._slots[number], plan.global_batch, trainer.device)
            dropout = mix_seed(plan.seed, step, number, plan.rank, "torch")
            self._learn_recorded(self._task.batch(positions), rng, dropout)
        trainer.exchange()
        self.moved = True
        if self._end is None or not self._tried(self._end.run):
            self._finish()

    def _learn_recorded(self, batch: Any, rng: StepRng, dropout: int) -> None:
        standing = self._standing(batch, rng)
        torch.manual_seed(dropout)
        if standing is not None:
            if self._tried(standing.recording.run):
                return
            torch.manual_seed(dropout)
        self._learn(batch, rng)

    def _standing(self, batch: Any, rng: StepRng) -> _Standing | None:
        """The recording for a batch, which now finds this batch and its random numbers; None: there is none."""
        if self._recorder is None:
            return None
        try:
            form = form_of(batch)
        except TypeError as reason:
            self._give_up(f"a batch holds what has no fixed form ({reason}).")
            return None
        known = self._forms.get(form)
        if known is None and len(self._forms) < _MOST_FORMS:
            known = self._forms[form] = self._new(self._recorder, batch, rng)
            if len(self._forms) == _MOST_FORMS:
                self._progress.say(f"batches come in many shapes: {_MOST_FORMS} are recorded, further ones are not.")
        elif known is not None:
            refill(known.batch, batch)
            known.rng.renew(rng)
        return known

    def _new(self, recorder: Recorder, batch: Any, rng: StepRng) -> _Standing:
        kept, drawn = with_tensors(batch, Tensor.clone), StandingRng(rng)
        return _Standing(kept, drawn, recorder.recording(lambda: self._learn(kept, drawn)))

    def _tried(self, run: Callable[[], None]) -> bool:
        """Whether the recorded work was done; if it cannot be recorded, nothing is from now on."""
        try:
            run()
        except NotRecordableError as reason:
            self._give_up(str(reason))
            return False
        return True

    def _give_up(self, reason: str) -> None:
        self._progress.say(f"steps are not recorded, which makes them slower: {reason}")
        self._recorder = self._end = None
        self._forms.clear()

    def _learn(self, batch: Any, rng: StepRng) -> None:
        """Forward and backward pass of a micro-batch."""
        out = self._output(batch, rng)
        self._trainer.backward(out)
        self._window.add(out.logs)

    def _output(self, batch: Any, rng: StepRng) -> StepOutput:
        with self._precision.autocast(self._trainer.device, needed=self._task.autocast):
            return self._task.loss(batch, rng)

    def _finish(self) -> None:
        """What ends a step when all gradients are there."""
        self._trainer.update()
        self._trainer.note(self._window)

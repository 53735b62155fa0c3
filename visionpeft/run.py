"""One run from settings to report: build the task, train it, then deliver what it learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from visionpeft.delivery import RunResult, classification, detection, dreambooth, folds, speech
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from visionpeft.config import RunConfig
    from visionpeft.training.record import FitResult
    from visionpeft.training.task import Task

FREE = {"output", "resume", "preview", "train"}
"""Settings that a continued run may change; the engine decides about ``train`` one by one."""


class Job(NamedTuple):
    """How the runs of one task are made.

    Attributes:
        build: the task of a run's settings; nothing is written yet.
        deliver: writes what a user takes away from a trained task.
        join: writes what several runs come to together, where the settings ask for several (one a fold).
    """

    build: Callable[[Any, Progress], Task]
    deliver: Callable[[Any, Any, FitResult, RecordingProgress], RunResult]
    join: Callable[[Any, Sequence[RunResult]], RunResult] | None = None


JOBS: dict[str, Job] = {
    "dreambooth": Job(dreambooth.build, dreambooth.deliver),
    "classify": Job(classification.build, classification.deliver, folds.join),
    "detect": Job(detection.build, detection.deliver),
    "transcribe": Job(speech.build, speech.deliver),
}
"""A row for every task of ``config.TASKS``."""


def train(config: RunConfig, *, progress: Progress = SILENT) -> RunResult | None:
    """Run one job to its end, or the several runs that its settings ask for one after the other.

    Args:
        config: the validated settings.
        progress: where phases are shown.

    Returns:
        What was written; None on processes other than the first of several.

    Raises:
        VisionPeftError: bad settings or data, a full disk, a loss that is not a number; nothing is left half-made.
    """
    job, parts = JOBS[config.task], config.parts()
    if job.join is None or not parts:
        return _train_one(config, job, progress)
    results = [_train_one(part, job, progress) for part in parts]
    done = [result for result in results if result is not None]
    return job.join(config, done) if done else None


def _train_one(config: RunConfig, job: Job, progress: Progress) -> RunResult | None:
    from accelerate import PartialState

    from visionpeft.config import dump
    from visionpeft.delivery.fitting import advice, fitted
    from visionpeft.delivery.plan import mixes_pairs
    from visionpeft.errors import ResourceError
    from visionpeft.tasks.ladder import ladder_of
    from visionpeft.training.engine import fit

    recorded = RecordingProgress(progress)
    config = fitted(config, recorded)
    task = job.build(config, recorded)
    try:
        result = fit(
            task,
            config.train,
            config.output,
            resume=config.resume,
            preview_every=config.preview_every,
            progress=recorded,
            settings=config.model_dump(mode="json", exclude=FREE),
            files={"config.yaml": dump(config)},
            ladder=ladder_of(pairs=mixes_pairs(config)) if config.train.vram == "auto" else (),
        )
    except ResourceError as error:
        raise ResourceError(f"{error}{advice(config)}") from error
    with result.alone():
        return job.deliver(config, task, result, recorded) if PartialState().is_main_process else None

"""One run from settings to report: build the task, train it, then deliver what it learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from visionpeft.config import DreamBoothRun, RunConfig
    from visionpeft.delivery import RunResult
    from visionpeft.tasks.dreambooth import DreamBooth

FREE = {"output", "resume", "preview", "train"}
"""Settings that a continued run may change; the engine decides about ``train`` one by one."""


def train(config: RunConfig, *, progress: Progress = SILENT) -> RunResult | None:
    """Run one job to its end.

    Args:
        config: the validated settings.
        progress: where phases are shown.

    Returns:
        What was written; None on processes other than the first of several.

    Raises:
        VisionPeftError: bad settings or data, a full disk, a loss that is not a number; nothing is left half-made.
    """
    from accelerate import PartialState

    from visionpeft.config import DreamBoothRun, dump
    from visionpeft.delivery import deliver
    from visionpeft.errors import ConfigError
    from visionpeft.training.engine import fit

    if not isinstance(config, DreamBoothRun):
        raise ConfigError(f"task '{config.task}' cannot be run by this version.")
    recorded = RecordingProgress(progress)
    task = build(config, recorded)
    result = fit(
        task,
        config.train,
        config.output,
        resume=config.resume,
        preview_every=config.preview.every if config.preview else 0,
        progress=recorded,
        settings=config.model_dump(mode="json", exclude=FREE),
        files={"config.yaml": dump(config)},
    )
    return deliver(config, task, result, recorded) if PartialState().is_main_process else None


def build(config: DreamBoothRun, progress: Progress = SILENT) -> DreamBooth:
    """Load the base and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the base cannot be loaded, or a target matches nothing in it.
    """
    from visionpeft.models.base import load_base
    from visionpeft.tasks.dreambooth import DreamBooth

    with progress.phase("loading the base", 1) as bar:
        base = load_base(config.base)
        bar.advance()
    return DreamBooth(
        base, config.data, config.adapter, preview=config.preview, score=config.score, seed=config.train.seed
    )

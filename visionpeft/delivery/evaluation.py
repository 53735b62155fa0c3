"""Measuring a finished model again: on its own data, or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpeft.delivery.parts import reported_again
from visionpeft.delivery.result import ADAPTER, RunResult
from visionpeft.errors import ConfigError, DataError, OutputError, did_you_mean
from visionpeft.progress import SILENT, Progress, RecordingProgress

CONFIG = "config.yaml"
SPLITS = ("test", "validation", "train", "all")


@dataclass(frozen=True)
class Evaluation:
    """What to measure.

    Attributes:
        what: a run's folder, or an adapter's file.
        overrides: settings laid over the run's; with other data over those of the data, and "report.…" over the
            report's.
        data: other data than the run's; None takes the run's own.
        split: "test", "validation", "train" or "all".
        output: folder of the report; it must not exist yet.
        tta: whether each picture is also seen mirrored.
        base: where the base is, if not where the adapter says.
    """

    what: Path
    overrides: Sequence[str] = ()
    data: Path | None = None
    split: str = "test"
    output: Path = Path("evaluation")
    tta: bool = False
    base: str | None = None

    @property
    def part(self) -> str:
        """Which of the run's own pictures are measured; "test" where it is other data: nothing was learned of it."""
        return self.split if self.data is None else "test"

    @property
    def of_report(self) -> tuple[str, ...]:
        """The overrides that are of the report."""
        return tuple(text for text in self.overrides if text.startswith("report."))

    @property
    def of_data(self) -> tuple[str, ...]:
        """The others, which are of the data where those are not the run's."""
        return tuple(text for text in self.overrides if not text.startswith("report."))

    @property
    def chooses(self) -> bool:
        """Whether thresholds are chosen on the run's validation data anew, not taken from the adapter."""
        return self.data is None and self.split != "validation"


def run_evaluation(job: Evaluation, *, progress: Progress = SILENT) -> RunResult:
    """Measure a model and write ``report.html`` and ``metrics.json``.

    Raises:
        OutputError: the output exists or cannot be written.
        ConfigError: an unknown split, or neither a run nor data.
        DataError: there is no adapter, or the data cannot be used.
        VisionPeftError: adapter or base cannot be loaded.
    """
    from visionpeft.data.cache import check_folder

    if job.split not in SPLITS:
        raise ConfigError(f"--split '{job.split}': one of {', '.join(SPLITS)}.{did_you_mean(job.split, SPLITS)}")
    if job.output.exists():
        raise OutputError(f"{job.output} exists: nothing is written over. Name another folder with --output.")
    check_folder(job.output)
    adapter, settings = _found(job)
    recorded = RecordingProgress(progress)
    if _hears(adapter):
        from visionpeft.delivery import speech_evaluation

        return speech_evaluation.measure(job, settings, adapter, recorded)
    return _measured_pictures(job, settings, adapter, recorded)


def _measured_pictures(job: Evaluation, settings: Any, adapter: Path, progress: RecordingProgress) -> RunResult:
    """Measure a classifier or a detector; its pictures are read and checked before the base is loaded."""
    from visionpeft.delivery import classification, detection
    from visionpeft.inference.predict import described, model_of

    value, about = described(adapter)
    task: Any = {"classify": classification, "detect": detection}[about.task]
    data = task.data_of(job, about, settings, progress)
    reported_again(job, data.splits, data.whole)
    model = model_of(value, about, job.base, progress)
    return task.measure(job, model, data, settings, adapter, progress)


def _hears(adapter: Path) -> bool:
    """Whether an adapter is of a speech model: its heads tell what it was trained to write."""
    from visionpeft.adapters.archive import Adapter

    return Adapter.load(adapter).metadata.heads.get("task") in ("transcribe", "translate")


def _found(job: Evaluation) -> tuple[Path, Any]:
    """The adapter's file, and the run's settings, of its task's class, where it is a run."""
    from visionpeft.config import load_config

    if job.what.is_file():
        if job.data is None:
            raise ConfigError(f"{job.what} is an adapter alone: name its data with --data, or give the run's folder.")
        return job.what, None
    adapter, config = job.what / ADAPTER, job.what / CONFIG
    if not adapter.is_file():
        raise DataError(f"{job.what} holds no finished run: expected {ADAPTER} there.")
    return adapter, load_config(config, job.overrides if job.data is None else job.of_report)

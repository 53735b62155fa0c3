"""What a transcription run leaves: the adapter, and the figures and report of the test speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visionpeft.delivery.parts import make_room, reported_part
from visionpeft.delivery.result import ADAPTER, RunFacts, RunResult
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from visionpeft.config import TranscribeRun
    from visionpeft.tasks.speech import Transcription
    from visionpeft.training.record import FitResult


def build(config: TranscribeRun, progress: Progress = SILENT) -> Transcription:
    """Read and split the speech, load the base, and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the speech cannot be used, the base cannot be loaded, a target matches nothing in it.
    """
    from visionpeft.data.speech.readers import open_speech
    from visionpeft.data.speech.splits import split_speech
    from visionpeft.inference.about import SpeechAbout
    from visionpeft.models.speech import load_speech
    from visionpeft.tasks.speech import Transcription

    seed = config.train.seed
    splits = split_speech(open_speech(config.data, progress), config.data.split, seed, progress)
    with progress.phase("loading the base", 1) as bar:
        base = load_speech(config.base, scratch=config.scratch, seed=seed, stored=config.train.shard == "on")
        bar.advance()
    about = SpeechAbout(
        language=config.language, task="translate" if config.translate else "transcribe",
        timestamps=config.timestamps, scratch=seed if config.scratch else None,
    )  # fmt: skip
    return Transcription(
        base, splits, config.data, config.adapter, about,
        metric=config.metric if config.train.evaluate_every else None,
        validate=config.validate_most, report=config.report, seed=seed,
    )  # fmt: skip


def deliver(config: TranscribeRun, task: Transcription, result: FitResult, progress: RecordingProgress) -> RunResult:
    """Measure the chosen adapter on the test speech, and write adapter, figures and report.

    Without test speech that of validation is reported, which the page then says.

    Args:
        config: the run's settings.
        task: as it was trained.
        result: what training came to.
        progress: what was shown and said so far; its times and lines go into the report.

    Raises:
        OutputError: the disk is full.
        DataError: there is neither test nor validation speech.
    """
    from visionpeft.delivery.speech_evaluation import report
    from visionpeft.inference.transcribe_model import open_speech_model

    splits, path = task.splits, result.adapter.save(config.output / ADAPTER)
    device = make_room(task.base, result, progress)
    part, name = reported_part(splits, progress, "recordings")
    opened = open_speech_model([(path, 1.0)], progress=progress, device=device)
    facts = RunFacts(config.output, path, result.adapter, config, name)
    page, figures = report(opened, task.listener.about, splits, part, facts, config.report, progress)
    return RunResult(None, path, {}, page, figures)

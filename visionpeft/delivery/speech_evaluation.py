"""Measuring a finished speech model again: on its own data, or on other data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.delivery.parts import report_settings
from visionpeft.delivery.result import RunFacts, RunResult, run_facts
from visionpeft.errors import ConfigError, DataError
from visionpeft.progress import Progress, RecordingProgress

if TYPE_CHECKING:
    from visionpeft.config import TranscribeRun
    from visionpeft.data.speech.settings import SpeechConfig
    from visionpeft.data.speech.splits import SpeechSplits
    from visionpeft.data.speech.utterances import Utterances
    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.evaluation.speech.figures import SpeechFigures, SpeechReportConfig
    from visionpeft.inference.about import SpeechAbout
    from visionpeft.inference.transcribe_model import Opened

_OF_THE_BASE = ("wer_raw", "wer_whisper", "wer_marks", "term_recall")
"""Figures that are told of the base alone as well."""


def measure(job: Evaluation, settings: TranscribeRun | None, adapter: Path, progress: RecordingProgress) -> RunResult:
    """Measure a finished speech model: on a part of its run's utterances, or on others.

    Args:
        job: what to measure.
        settings: of the run; None where an adapter alone is measured.
        adapter: its file.
        progress: keeps what the report tells.

    Raises:
        DataError: the data cannot be used, or none are in the split.
        ConfigError: mirrored pictures are asked for.
        VisionPeftError: adapter or base cannot be loaded.
    """
    from visionpeft.evaluation.speech.figures import SpeechReportConfig
    from visionpeft.inference.about import SpeechAbout
    from visionpeft.inference.transcribe_model import open_speech_model

    if job.tta:
        raise ConfigError("--tta mirrors pictures; leave it away for speech.")
    splits = _splits(job, settings, progress)
    part = _part(splits, job.split)
    opened = open_speech_model([(adapter, 1.0)], job.base, progress=progress)
    about = SpeechAbout.model_validate(
        {"language": opened.language, "task": opened.task, "timestamps": opened.timestamps}
    )
    config = report_settings(job, settings, SpeechReportConfig)
    page, figures = report(opened, about, splits, part, _facts(job, settings, adapter), config, progress)
    return RunResult(None, adapter, {}, page, figures)


def report(
    opened: Opened,
    spoken: SpeechAbout,
    splits: SpeechSplits,
    part: Utterances,
    facts: RunFacts,
    config: SpeechReportConfig,
    progress: RecordingProgress,
) -> tuple[Path, dict[str, float]]:
    """Write the report of utterances; return its page and the figures by name.

    Args:
        opened: the model with its adapter.
        spoken: language, task and timestamps.
        splits: all data, for what the page tells of them.
        part: the utterances that are measured.
        facts: about the run.
        config: what is measured; the language is the model's where it does not say.
        progress: keeps what the report tells.
    """
    from visionpeft.evaluation.speech.about import SpeechRunAbout
    from visionpeft.evaluation.speech.figures import speech_figures
    from visionpeft.evaluation.speech.report import write_speech_report
    from visionpeft.inference.listener import Listener

    listener = Listener(opened.base, spoken)
    config = config.model_copy(update={"language": config.language or listener.writes})
    transcripts = listener.transcripts(part, label=f"{facts.part} utterances", progress=progress)
    figures, bare = speech_figures(transcripts, config), None
    if config.base and facts.adapter.metadata.heads.get("scratch") is None:  # random weights have nothing to say
        with opened.manager.using({}):
            before = listener.transcripts(part, label="the base alone", progress=progress)
        bare = speech_figures(before, config.model_copy(update={"worst": 0, "by": ()}))
    about = SpeechRunAbout(**run_facts(facts, opened.base, progress), **_data_facts(splits, facts.settings))
    page = write_speech_report(facts.folder, figures, transcripts, part.audio, about, bare)
    return page, headline(figures, bare)


def headline(figures: SpeechFigures, bare: SpeechFigures | None = None) -> dict[str, float]:
    """Return the figures of a run by name: error rates in each normalisation, terms, failures, real-time factor.

    Args:
        figures: of the model with its adapter.
        bare: of the base alone: its error rates and recall of terms are named "base_…".
    """
    named: dict[str, float | None] = {}
    for name, rates in figures.rates.items():
        named |= {f"wer_{name}": rates.wer.rate, f"cer_{name}": rates.cer.rate}
    if figures.terms is not None:
        named |= {"term_recall": figures.terms.overall.recall, "term_precision": figures.terms.overall.precision}
    failures = figures.failures
    named |= {"hallucinations": failures.hallucinations, "repetitions": failures.repetitions}
    named["real_time_factor"] = figures.real_time_factor
    if bare is not None:
        named |= {f"base_{name}": value for name, value in headline(bare).items() if name in _OF_THE_BASE}
    return {name: float(value) for name, value in named.items() if value is not None}


def _facts(job: Evaluation, settings: TranscribeRun | None, adapter: Path) -> RunFacts:
    from visionpeft.adapters.archive import Adapter
    from visionpeft.data.cache import make_folder

    return RunFacts(make_folder(job.output), adapter, Adapter.load(adapter), settings, job.part)


def _data_facts(splits: SpeechSplits, settings: Any) -> dict[str, Any]:
    """The fields that tell of the data: "utterances", "hours", "leaks", "leaks_checked"."""
    from visionpeft.data.speech.leaks import speech_leaks

    parts = {name: part for name, part in splits.parts().items() if len(part)}
    hours = {name: sum(part.seconds(row) for row in range(len(part))) / 3600 for name, part in parts.items()}
    by = settings.data.split.by if settings is not None else None
    return {
        "utterances": {name: len(part) for name, part in parts.items()},
        "hours": hours,
        "leaks": tuple(str(leak) for leak in speech_leaks(parts, by)),
        "leaks_checked": True,
    }


def _splits(job: Evaluation, settings: TranscribeRun | None, progress: Progress) -> SpeechSplits:
    from visionpeft.data.speech.readers import open_speech
    from visionpeft.data.speech.splits import SpeechSplits, split_speech

    if job.data is None and settings is not None:
        utterances = open_speech(settings.data, progress)
        return split_speech(utterances, settings.data.split, settings.train.seed, progress)
    found = open_speech(_others(job), progress)
    given = [item.split or "test" for item in found.items]
    rows = [[row for row, split in enumerate(given) if split == name] for name in ("train", "validation", "test")]
    return SpeechSplits(*(found.subset(chosen) for chosen in rows))


def _part(splits: SpeechSplits, name: str) -> Utterances:
    parts = splits.parts()
    part = parts["train"] if name == "all" else parts[name]
    if name == "all":
        part = replace(part, items=tuple(item for one in parts.values() for item in one.items))
    if not len(part):
        raise DataError(f"no utterance is in the split '{name}': take another one, --split all for example.")
    return part


def _others(job: Evaluation) -> SpeechConfig:
    """Settings of other data: a YAML file of them, a table, a folder of Common Voice or an audiofolder."""
    from visionpeft.config import validate
    from visionpeft.config.source import Source, apply_overrides, read_source
    from visionpeft.data.speech.settings import SpeechConfig

    path = job.data
    if path is None:
        raise ConfigError("name the speech with --data.")
    if path.suffix in (".yaml", ".yml"):
        source = read_source(path, job.of_data)
    else:
        source = apply_overrides(Source("--data", {"source": source_of(path)}), job.of_data)
    return validate(SpeechConfig, source)


def source_of(path: Path) -> dict[str, str]:
    """Return which source a path is, by what it is.

    Raises:
        DataError: it is none.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if path.suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        return {"format": "table", "path": str(path)}
    if (path / "clips").is_dir():
        return {"format": "common_voice", "folder": str(path)}
    if path.is_dir():
        return {"format": "audiofolder", "folder": str(path)}
    raise DataError(
        f"{path}: expected a table (.csv, .tsv, .jsonl, .parquet), a folder of Common Voice or an audiofolder, or"
        " settings in a .yaml."
    )

"""What a classification run leaves: the adapter with its thresholds, figures and the report of the test pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from visionpeft.delivery.classification_page import Context, measured
from visionpeft.delivery.parts import (
    Read,
    given_parts,
    make_room,
    measured_again,
    measured_run,
    opened,
    other_data,
    report_settings,
)
from visionpeft.delivery.result import ADAPTER, RunFacts, RunResult, with_about
from visionpeft.delivery.vision import framed_base
from visionpeft.errors import DataError, did_you_mean
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from pathlib import Path

    from visionpeft.config import ClassifyRun
    from visionpeft.data.classification import LabelledPictures, Splits
    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.evaluation.classification.predictions import Predictions
    from visionpeft.evaluation.classification.settings import ReportConfig
    from visionpeft.inference.about import ClassifierAbout
    from visionpeft.inference.classifier import Classifier
    from visionpeft.tasks.classification import Classification
    from visionpeft.training.record import FitResult


def build(config: ClassifyRun, progress: Progress = SILENT) -> Classification:
    """Read and split the pictures, load the base, and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the pictures cannot be used, the base cannot be loaded, a target matches nothing in it.
    """
    from visionpeft.data.classification import open_pictures
    from visionpeft.tasks.classification import Classification, Learning

    pictures = open_pictures(config.data, progress)
    _check_subgroups(pictures, config.report)
    splits = splits_of(config, pictures, progress)
    base = framed_base(config, progress)
    learning = Learning(
        config.loss, config.class_weights, config.layer_decay, config.metric if config.train.evaluate_every else None
    )
    seed = config.train.seed
    return Classification(
        base, splits, config.data, config.adapter, learning, seed=seed, scratch=seed if config.scratch else None
    )


def splits_of(config: ClassifyRun, pictures: LabelledPictures, progress: Progress = SILENT) -> Splits:
    """Return the pictures as the run uses them: split, or the fold that is chosen.

    Raises:
        DataError: they cannot be split so.
    """
    from visionpeft.data.classification import folds, split_pictures

    data, seed = config.data, config.train.seed
    if data.folds is None:
        return split_pictures(pictures, data.split, seed, progress)
    return folds(pictures, data.folds, seed)[(data.fold or 1) - 1]


def deliver(config: ClassifyRun, task: Classification, result: FitResult, progress: RecordingProgress) -> RunResult:
    """Measure the chosen adapter on the test pictures, and write adapter, figures and report.

    Thresholds and temperature are chosen on validation and saved with the adapter. Without test pictures the validation
    pictures are reported, which the page then says.

    Args:
        config: the run's settings.
        task: as it was trained.
        result: what training came to.
        progress: what was shown and said so far; its times and lines go into the report.

    Raises:
        OutputError: the disk is full.
    """
    from visionpeft.inference.classifier import Classifier

    path = result.adapter.save(config.output / ADAPTER)
    classifier = opened(Classifier, path, progress, make_room(task.base, result, progress))
    found = measured_run(task.splits, _answer(classifier, progress), progress)
    about = classifier.about if found.chosen is None else decided(classifier.about, found.chosen, config.report)
    with_about(result.adapter, about).save(path)
    facts = RunFacts(config.output, path, result.adapter, config, found.part)
    context = Context(
        facts, classifier, found.data, task.splits, config.report, config.data.split.leaks, result.steps,
        result.best_step,
    )  # fmt: skip
    report, metrics = measured(context, found.answers, found.chosen, progress)
    return RunResult(None, path, {}, report, metrics)


def decided(about: ClassifierAbout, validation: Predictions, config: ReportConfig) -> ClassifierAbout:
    """Return ``about`` with thresholds and temperature chosen on validation pictures."""
    from visionpeft.evaluation.classification.calibration import fit_temperature
    from visionpeft.evaluation.classification.operating import operating_points

    asked = [validation.labels[place] for place in validation.asked]
    points = operating_points(validation, asked, config.operating_point)
    thresholds = {point.label: point.threshold for point in points}
    return about.model_copy(update={"thresholds": thresholds, "temperature": fit_temperature(validation).value})


def _answer(
    classifier: Classifier, progress: Progress, *, tta: bool = False
) -> Callable[[LabelledPictures, str], Predictions]:
    return lambda pictures, label: classifier.predictions(pictures, label=label, tta=tta, progress=progress)


def measure(
    job: Evaluation,
    classifier: Classifier,
    data: Read[LabelledPictures, Splits, ReportConfig],
    settings: ClassifyRun | None,
    adapter: Path,
    progress: RecordingProgress,
) -> RunResult:
    """Measure a finished classifier: on a part of its run's pictures, or on others.

    On the run's own pictures, thresholds and temperature are chosen on its validation pictures anew; on others, they
    are those that the adapter holds.

    Raises:
        DataError: none of the pictures are in the split.
    """
    from visionpeft.adapters.archive import Adapter
    from visionpeft.data.cache import make_folder
    from visionpeft.evaluation.classification.operating import Held

    found = measured_again(job, data.splits, data.whole, _answer(classifier, progress, tta=job.tta))
    facts = RunFacts(make_folder(job.output), adapter, Adapter.load(adapter), settings, found.part)
    rules = settings.data.split.leaks if settings is not None else None
    held = Held(classifier.about.thresholds, classifier.about.temperature) if classifier.about.thresholds else None
    context = Context(facts, classifier, found.data, data.splits, data.report, rules, held=held)
    page, metrics = measured(context, found.answers, found.chosen, progress)
    return RunResult(None, adapter, {}, page, metrics)


def data_of(
    job: Evaluation, about: ClassifierAbout, settings: ClassifyRun | None, progress: RecordingProgress
) -> Read[LabelledPictures, Splits, ReportConfig]:
    """Return the run's own pictures as it split them, or others, and what is measured on them.

    Raises:
        ConfigError: an override is wrong.
        DataError: the pictures cannot be used.
    """
    from visionpeft.data.classification import PicturesConfig, Splits, open_pictures
    from visionpeft.evaluation.classification.settings import ReportConfig

    report = report_settings(job, settings, ReportConfig)
    if job.data is None and settings is not None:
        pictures = open_pictures(settings.data, progress)
        _check_subgroups(pictures, report)
        return Read(pictures, splits_of(settings, pictures, progress), report)
    known = {"labels": list(about.labels), "kind": about.kind, "intensity": about.intensity.model_dump(mode="json"),
             "volumes": about.volumes.model_dump(mode="json")}  # fmt: skip
    pictures = open_pictures(other_data(job, PicturesConfig, _source_of, known), progress)
    _check_subgroups(pictures, report)
    splits = Splits(*given_parts(pictures, (example.split for example in pictures.examples)))
    return Read(pictures, splits, report)


def _check_subgroups(pictures: LabelledPictures, report: ReportConfig) -> None:
    """Refuse columns that the pictures do not have, before anything is trained or measured."""
    from visionpeft.inference.classifier import columns_of

    known = columns_of(pictures)
    for name in report.subgroups:
        if name not in known:
            there = ", ".join(f"'{column}'" for column in known) or "none"
            raise DataError(
                f"report.subgroups: the pictures have no column '{name}': there is {there}.{did_you_mean(name, known)}"
            )


def _source_of(path: Path) -> dict[str, str]:
    return {"format": format_of(path), "path": str(path)}


def format_of(path: Path) -> str:
    """Which source a path is, by what it is."""
    from visionpeft.data.classification.sources.datasets import is_dataset

    kinds = {".csv": "table", ".tsv": "table", ".jsonl": "table", ".parquet": "table", ".npz": "medmnist"}
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if path.is_dir():
        return "dataset" if is_dataset(path) else "folder"
    if path.suffix not in kinds:
        raise DataError(f"{path}: expected a folder of classes, one of {', '.join(kinds)}, or settings in a .yaml.")
    return kinds[path.suffix]

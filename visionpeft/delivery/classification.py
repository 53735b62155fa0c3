"""What a classification run leaves: the adapter with its thresholds, figures and the report of the test pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from visionpeft.delivery.classification_page import Context, measured
from visionpeft.delivery.result import ADAPTER, RunFacts, RunResult, with_about
from visionpeft.errors import AdapterError, ConfigError, DataError
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from pathlib import Path

    from visionpeft.config import ClassifyRun
    from visionpeft.data.classification import LabelledPictures, PicturesConfig, Splits
    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.evaluation.classification.predictions import Predictions
    from visionpeft.evaluation.classification.settings import ReportConfig
    from visionpeft.inference.about import ClassifierAbout
    from visionpeft.inference.classifier import Classifier
    from visionpeft.models.vision import VisionBase
    from visionpeft.tasks.classification import Classification
    from visionpeft.training.record import FitResult


def build(config: ClassifyRun, progress: Progress = SILENT) -> Classification:
    """Read and split the pictures, load the base, and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the pictures cannot be used, the base cannot be loaded, a target matches nothing in it.
    """
    from visionpeft.data.classification import open_pictures
    from visionpeft.tasks.classification import Classification, Learning

    splits = splits_of(config, open_pictures(config.data, progress), progress)
    with progress.phase("loading the base", 1) as bar:
        base = base_of(config, progress)
        bar.advance()
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


def base_of(config: ClassifyRun, progress: Progress = SILENT) -> VisionBase:
    """Return the base at the size and with the framing that the settings ask for.

    Raises:
        BaseModelError: it cannot be loaded.
    """
    from visionpeft.models.vision import load_vision

    data = config.data
    base = load_vision(
        config.base, task="classify", image_size=data.image_size, scratch=config.scratch, seed=config.train.seed,
        progress=progress,
    )  # fmt: skip
    if data.fit is not None:
        base.preprocessing = base.preprocessing.model_copy(update={"fit": data.fit})
    return base


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
    splits = task.splits
    path = result.adapter.save(config.output / ADAPTER)
    task.base.to("cpu")  # makes room: what is measured is the file, opened as a user opens it
    classifier = open_classifier(path, progress)
    chosen = _predicted(classifier, splits.validation, "validation pictures", progress)
    reported = _predicted(classifier, splits.test, "test pictures", progress)
    pictures = splits.test
    if reported is None:
        progress.say("There are no test pictures: the figures are of the validation pictures.")
        reported, pictures = chosen, splits.validation
    if reported is None:
        raise DataError("there are neither test nor validation pictures to report on: set data.split.fractions.")
    about = classifier.about if chosen is None else decided(classifier.about, chosen, config.report)
    with_about(result.adapter, about).save(path)
    facts = RunFacts(config.output, path, result.adapter, config, "test" if len(splits.test) else "validation")
    context = Context(
        facts, classifier, pictures, splits, config.report, config.data.split.leaks, result.steps, result.best_step
    )
    report, metrics = measured(context, reported, chosen, progress)
    return RunResult(None, path, {}, report, metrics)


def open_classifier(path: Path, progress: Progress) -> Classifier:
    """Return the classifier of an adapter's file.

    Raises:
        AdapterError: it is none.
    """
    from visionpeft.inference.classifier import Classifier
    from visionpeft.inference.predict import open_model

    model = open_model(path, progress=progress)
    if not isinstance(model, Classifier):
        raise AdapterError(f"{path} is a detector, not a classifier.")
    return model


def decided(about: ClassifierAbout, validation: Predictions, config: ReportConfig) -> ClassifierAbout:
    """Return ``about`` with thresholds and temperature chosen on validation pictures."""
    from visionpeft.evaluation.classification.calibration import fit_temperature
    from visionpeft.evaluation.classification.operating import operating_points

    asked = [validation.labels[place] for place in validation.asked]
    points = operating_points(validation, asked, config.operating_point)
    thresholds = {point.label: point.threshold for point in points}
    return about.model_copy(update={"thresholds": thresholds, "temperature": fit_temperature(validation).value})


def _predicted(
    classifier: Classifier, pictures: LabelledPictures, label: str, progress: Progress, *, tta: bool = False
) -> Predictions | None:
    return classifier.predictions(pictures, label=label, tta=tta, progress=progress) if len(pictures) else None


def measure(
    job: Evaluation, classifier: Classifier, settings: ClassifyRun | None, adapter: Path, progress: RecordingProgress
) -> RunResult:
    """Measure a finished classifier: on a part of its run's pictures, or on others.

    On the run's own pictures, thresholds and temperature are chosen on its validation pictures anew; on others, the
    thresholds are those that the adapter holds.

    Raises:
        DataError: the pictures cannot be used, or none are in the split.
    """
    from visionpeft.adapters.archive import Adapter
    from visionpeft.data.cache import make_folder

    splits = _splits(job, classifier.about, settings, progress)
    pictures = _part(splits, job.split)
    own = job.data is None and job.split != "validation"
    chosen = _predicted(classifier, splits.validation, "validation pictures", progress, tta=job.tta) if own else None
    reported = _predicted(classifier, pictures, f"{job.split} pictures", progress, tta=job.tta)
    if reported is None:
        raise DataError(f"no picture is in the split '{job.split}': take another one, --split all for example.")
    report = _report_config(settings, classifier.about)
    facts = RunFacts(make_folder(job.output), adapter, Adapter.load(adapter), settings, job.part)
    context = Context(
        facts, classifier, pictures, splits, report, settings.data.split.leaks if settings is not None else None
    )
    page, metrics = measured(context, reported, chosen, progress)
    return RunResult(None, adapter, {}, page, metrics)


def _splits(
    job: Evaluation, about: ClassifierAbout, settings: ClassifyRun | None, progress: RecordingProgress
) -> Splits:
    """The run's own splits, or all of other data as the test, or as it says itself."""
    from visionpeft.data.classification import Splits, open_pictures

    if job.data is None and settings is not None:
        return splits_of(settings, open_pictures(settings.data, progress), progress)
    pictures = open_pictures(_pictures_config(job, about), progress)
    given = [example.split or "test" for example in pictures.examples]
    parts = [[row for row, split in enumerate(given) if split == name] for name in ("train", "validation", "test")]
    return Splits(*(pictures.subset(rows) for rows in parts))


def _part(splits: Splits, name: str) -> LabelledPictures:
    parts = splits.parts()
    if name != "all":
        return parts[name]
    every = [example for part in parts.values() for example in part.examples]
    return replace(splits.train, examples=tuple(every))


def _pictures_config(job: Evaluation, about: ClassifierAbout) -> PicturesConfig:
    """Settings of other pictures: a YAML file of them, or a path whose kind tells the format."""
    from visionpeft.config import validate
    from visionpeft.config.source import Source, apply_overrides, read_source
    from visionpeft.data.classification import PicturesConfig

    path = job.data
    if path is None:
        raise ConfigError("name the pictures with --data.")
    if path.suffix in (".yaml", ".yml"):
        source = read_source(path, job.overrides)
    else:
        values = {"source": {"format": format_of(path), "path": str(path)}}
        source = apply_overrides(Source("--data", values), job.overrides)
    known = {"labels": list(about.labels), "kind": about.kind, "intensity": about.intensity.model_dump(mode="json"),
             "volumes": about.volumes.model_dump(mode="json")}  # fmt: skip
    return validate(PicturesConfig, replace(source, values={**known, **source.values}))


def format_of(path: Path) -> str:
    """Which source a path is, by what it is."""
    kinds = {".csv": "table", ".tsv": "table", ".jsonl": "table", ".parquet": "table", ".npz": "medmnist"}
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if path.is_dir():
        return "dataset" if (path / "dataset_info.json").exists() else "folder"
    if path.suffix not in kinds:
        raise DataError(f"{path}: expected a folder of classes, one of {', '.join(kinds)}, or settings in a .yaml.")
    return kinds[path.suffix]


def _report_config(settings: ClassifyRun | None, about: ClassifierAbout) -> ReportConfig:
    """What is measured: as the run says, with the adapter's own thresholds where nothing is chosen."""
    from visionpeft.evaluation.classification.settings import ReportConfig

    config = settings.report if settings is not None else ReportConfig()
    point = config.operating_point.model_copy(update={"thresholds": about.thresholds})
    return config.model_copy(update={"operating_point": point})

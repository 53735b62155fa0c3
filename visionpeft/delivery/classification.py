"""What a classification run leaves: the adapter with its thresholds, the figures and the report of the test pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from visionpeft import __version__
from visionpeft.delivery.result import RunResult, machine, versions
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from visionpeft.adapters.archive import Adapter
    from visionpeft.config import ClassifyRun
    from visionpeft.data.classification import LabelledPictures, Leak, Splits
    from visionpeft.evaluation.classification.about import RunAbout
    from visionpeft.evaluation.classification.figures import ClassificationFigures
    from visionpeft.models.vision import VisionBase
    from visionpeft.tasks.classification import Classification
    from visionpeft.training.record import FitResult

ADAPTER = "adapter.safetensors"


def build(config: ClassifyRun, progress: Progress = SILENT) -> Classification:
    """Read and split the pictures, load the base, and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the pictures cannot be used, the base cannot be loaded, a target matches nothing in it.
    """
    from visionpeft.data.classification import open_pictures
    from visionpeft.tasks.classification import Classification, Learning

    splits = splits_of(config, open_pictures(config.data, progress), progress)
    with progress.phase("loading the base", 1) as bar:
        base = base_of(config)
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


def base_of(config: ClassifyRun) -> VisionBase:
    """Return the base at the size and with the framing that the settings ask for.

    Raises:
        BaseModelError: it cannot be loaded.
    """
    from visionpeft.models.vision import load_vision

    data = config.data
    base = load_vision(
        config.base, task="classify", image_size=data.image_size, scratch=config.scratch, seed=config.train.seed
    )
    if data.fit is not None:
        base.preprocessing = base.preprocessing.model_copy(update={"fit": data.fit})
    return base


def deliver(config: ClassifyRun, task: Classification, result: FitResult, progress: RecordingProgress) -> RunResult:
    """Measure the chosen adapter on the test pictures, and write adapter, figures and report.

    Thresholds and temperature are chosen on validation and saved with the adapter. Without test pictures the validation
    pictures are reported, which the page then says.

    Args:
        config: the run's settings.
        task: as it was trained; the chosen adapter is put in place of the last one.
        result: what training came to.
        progress: what was shown and said so far; its times and lines go into the report.

    Raises:
        OutputError: the disk is full.
    """
    from visionpeft.evaluation.classification.figures import classification_figures
    from visionpeft.evaluation.classification.report import write_classification_report

    task.restore(result.adapter)
    validation, test = task.splits.validation, task.splits.test
    chosen = task.predictions(validation, "validation pictures") if len(validation) else None
    if len(test):
        reported, pictures = task.predictions(test, "test pictures"), test
    else:
        progress.say("There are no test pictures: the report is of those that the step was chosen on, so too good.")
        reported, pictures = chosen, validation
    ...

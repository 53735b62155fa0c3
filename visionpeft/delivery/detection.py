"""What a detection run leaves: the adapter with its threshold, the figures and the report of the test pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from visionpeft.delivery.parts import (
    Measured,
    Read,
    given_parts,
    make_room,
    measured_again,
    measured_run,
    opened,
    other_data,
    report_settings,
)
from visionpeft.delivery.result import ADAPTER, RunFacts, RunResult, run_facts, with_about
from visionpeft.delivery.vision import framed_base
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from pathlib import Path

    from visionpeft.config import DetectRun
    from visionpeft.data.detection.scenes import LabelledScenes
    from visionpeft.data.detection.splits import SceneSplits
    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.evaluation.detection.detections import Evaluation as Found
    from visionpeft.evaluation.detection.figures import DetectionReportConfig, Held
    from visionpeft.inference.about import DetectorAbout
    from visionpeft.inference.detector import Detector
    from visionpeft.tasks.detection import Detection
    from visionpeft.training.record import FitResult


def build(config: DetectRun, progress: Progress = SILENT) -> Detection:
    """Read and split the pictures, load the base, and put the task together; nothing is written yet.

    Raises:
        VisionPeftError: the pictures cannot be used, the base cannot be loaded, a target matches nothing in it.
    """
    from visionpeft.data.detection.readers import open_scenes
    from visionpeft.data.detection.splits import split_scenes
    from visionpeft.tasks.detection import Detection

    splits = split_scenes(open_scenes(config.data, progress), config.data.split, progress)
    base = framed_base(config, progress)
    seed = config.train.seed
    return Detection(
        base, splits, config.data, config.adapter, metric=config.metric if config.train.evaluate_every else None,
        train_boxes=config.train_boxes, auxiliary=config.auxiliary_loss, seed=seed,
        scratch=seed if config.scratch else None,
    )  # fmt: skip


def deliver(config: DetectRun, task: Detection, result: FitResult, progress: RecordingProgress) -> RunResult:
    """Measure the chosen adapter on the test pictures, and write adapter, figures and report.

    The threshold is chosen on validation and saved with the adapter. Without test pictures the validation pictures are
    reported, which the page then says.

    Args:
        config: the run's settings.
        task: as it was trained.
        result: what training came to.
        progress: what was shown and said so far; its times and lines go into the report.

    Raises:
        OutputError: the disk is full.
        DataError: there are neither test nor validation pictures.
    """
    from visionpeft.inference.detector import Detector

    path = result.adapter.save(config.output / ADAPTER)
    detector = opened(Detector, path, progress, make_room(task.base, result, progress))
    found = measured_run(task.splits, _answer(detector, progress), progress)
    facts = RunFacts(config.output, path, result.adapter, config, found.part)
    page, figures = _reported(facts, detector, task.splits, found, config.report, progress)
    about = detector.about.model_copy(update={"threshold": figures["threshold"]})
    with_about(result.adapter, about).save(path)
    return RunResult(None, path, {}, page, figures)


def measure(
    job: Evaluation,
    detector: Detector,
    data: Read[LabelledScenes, SceneSplits, DetectionReportConfig],
    settings: DetectRun | None,
    adapter: Path,
    progress: RecordingProgress,
) -> RunResult:
    """Measure a finished detector: on a part of its run's pictures, or on others.

    On the run's own pictures the threshold is chosen on its validation pictures anew; on others, it is the one that the
    adapter holds.

    Raises:
        DataError: none of the pictures are in the split.
    """
    from visionpeft.adapters.archive import Adapter
    from visionpeft.data.cache import make_folder
    from visionpeft.evaluation.detection.figures import Held

    found = measured_again(job, data.splits, data.whole, _answer(detector, progress, tta=job.tta))
    facts = RunFacts(make_folder(job.output), adapter, Adapter.load(adapter), settings, found.part)
    mirrored = ", on pictures that were not seen mirrored as well" if job.tta else ""
    held = None if job.chooses else Held(detector.about.threshold, f"the adapter's, as its training left it{mirrored}")
    page, figures = _reported(facts, detector, data.splits, found, data.report, progress, held)
    return RunResult(None, adapter, {}, page, figures)


def _reported(
    facts: RunFacts,
    detector: Detector,
    splits: SceneSplits,
    found: Measured[LabelledScenes, Found],
    config: DetectionReportConfig,
    progress: RecordingProgress,
    held: Held | None = None,
) -> tuple[Path, dict[str, float]]:
    """Write the report; return its page and the figures by name, the threshold among them."""
    from visionpeft.evaluation.detection.about import DetectionAbout, data_facts
    from visionpeft.evaluation.detection.report import write_detection_report
    from visionpeft.evaluation.report_data import METRICS

    about = DetectionAbout(**run_facts(facts, detector.base, progress), **data_facts(splits))
    others = tuple(line for line in about.warnings if not line.startswith(splits.faults))  # those have their own place
    about = about.model_copy(update={"warnings": others})
    page = write_detection_report(
        facts.folder, test=found.answers, validation=found.chosen, pictures=found.data.image, about=about,
        config=config, held=held,
    )  # fmt: skip
    figures = json.loads((facts.folder / METRICS).read_text(encoding="utf-8"))["figures"]
    operating = {name: figures["operating"][name] for name in ("precision", "recall", "f1")}
    named = {**figures["coco"]["overall"], **operating, "threshold": figures["threshold"]}
    return page, {name: float(value) for name, value in named.items() if value is not None}


def _answer(detector: Detector, progress: Progress, *, tta: bool = False) -> Callable[[LabelledScenes, str], Found]:
    return lambda scenes, label: detector.evaluation(scenes, label=label, tta=tta, progress=progress)


def data_of(
    job: Evaluation, about: DetectorAbout, settings: DetectRun | None, progress: RecordingProgress
) -> Read[LabelledScenes, SceneSplits, DetectionReportConfig]:
    """Return the run's own pictures as it split them, or others, and what is measured on them.

    Raises:
        ConfigError: an override is wrong.
        DataError: the pictures cannot be used.
    """
    from visionpeft.data.detection.readers import open_scenes
    from visionpeft.data.detection.settings import ScenesConfig
    from visionpeft.data.detection.splits import SceneSplits, split_scenes
    from visionpeft.evaluation.detection.figures import DetectionReportConfig

    report = report_settings(job, settings, DetectionReportConfig)
    if job.data is None and settings is not None:
        scenes = open_scenes(settings.data, progress)
        return Read(scenes, split_scenes(scenes, settings.data.split, progress), report)
    scenes = open_scenes(other_data(job, ScenesConfig, _source_of, {"labels": list(about.labels)}), progress)
    parts = given_parts(scenes, (scene.split for scene in scenes.scenes))
    return Read(scenes, SceneSplits(*parts, faults=scenes.faults), report)


def _source_of(path: Path) -> dict[str, str]:
    """Which source a path is, by what it is."""
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    if path.suffix == ".json":
        return {"format": "coco", "folder": str(path.parent), "annotations": path.name}
    if (path / "Annotations").is_dir():
        return {"format": "voc", "folder": str(path)}
    if path.is_dir():
        return {"format": "yolo", "folder": str(path)}
    raise DataError(f"{path}: expected a COCO .json, a folder of YOLO or VOC, or settings in a .yaml.")

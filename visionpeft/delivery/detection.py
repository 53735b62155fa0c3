"""What a detection run leaves: the adapter with its threshold, the figures and the report of the test pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from visionpeft.delivery.result import ADAPTER, RunFacts, RunResult, run_facts, with_about
from visionpeft.errors import AdapterError, ConfigError, DataError
from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from pathlib import Path

    from visionpeft.config import DetectRun
    from visionpeft.data.detection.scenes import LabelledScenes
    from visionpeft.data.detection.settings import ScenesConfig
    from visionpeft.data.detection.splits import SceneSplits
    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.evaluation.detection.detections import Evaluation as Found
    from visionpeft.evaluation.detection.figures import DetectionReportConfig
    from visionpeft.inference.about import DetectorAbout
    from visionpeft.inference.detector import Detector
    from visionpeft.models.vision import VisionBase
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
    with progress.phase("loading the base", 1) as bar:
        base = base_of(config, progress)
        bar.advance()
    seed = config.train.seed
    return Detection(
        base, splits, config.data, config.adapter, metric=config.metric if config.train.evaluate_every else None,
        train_boxes=config.train_boxes, seed=seed, scratch=seed if config.scratch else None,
    )  # fmt: skip


def base_of(config: DetectRun, progress: Progress = SILENT) -> VisionBase:
    """Return the base at the size and with the framing that the settings ask for.

    Raises:
        BaseModelError: it cannot be loaded.
    """
    from visionpeft.models.vision import load_vision

    data = config.data
    base = load_vision(
        config.base, task="detect", image_size=data.image_size, scratch=config.scratch, seed=config.train.seed,
        progress=progress,
    )  # fmt: skip
    if data.fit is not None:
        base.preprocessing = base.preprocessing.model_copy(update={"fit": data.fit})
    return base


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
    splits, path = task.splits, config.output / ADAPTER
    result.adapter.save(path)
    task.base.to("cpu")  # makes room: what is measured is the file, opened as a user opens it
    detector = open_detector(path, progress)
    chosen = _found(detector, splits.validation, "validation pictures", progress)
    reported, pictures = _found(detector, splits.test, "test pictures", progress), splits.test
    if reported is None:
        progress.say("There are no test pictures: the figures are of the validation pictures.")
        reported, pictures = chosen, splits.validation
    if reported is None:
        raise DataError("there are neither test nor validation pictures to report on: set data.split.")
    facts = RunFacts(config.output, path, result.adapter, config, "test" if len(splits.test) else "validation")
    page, figures = _measured(facts, detector, splits, pictures, reported, chosen, config.report, progress)
    about = detector.about.model_copy(update={"threshold": figures["threshold"]})
    with_about(result.adapter, about).save(path)
    return RunResult(None, path, {}, page, figures)


def open_detector(path: Path, progress: Progress) -> Detector:
    """Return the detector of an adapter's file.

    Raises:
        AdapterError: it is none.
    """
    from visionpeft.inference.detector import Detector
    from visionpeft.inference.predict import open_model

    model = open_model(path, progress=progress)
    if not isinstance(model, Detector):
        raise AdapterError(f"{path} is a classifier, not a detector.")
    return model


def measure(
    job: Evaluation, detector: Detector, settings: DetectRun | None, adapter: Path, progress: RecordingProgress
) -> RunResult:
    """Measure a finished detector: on a part of its run's pictures, or on others.

    On the run's own pictures the threshold is chosen on its validation pictures anew; on others, it is the one that the
    adapter holds.

    Raises:
        DataError: the pictures cannot be used, or none are in the split.
    """
    from visionpeft.adapters.archive import Adapter
    from visionpeft.data.cache import make_folder
    from visionpeft.data.detection.readers import open_scenes
    from visionpeft.data.detection.splits import split_scenes
    from visionpeft.evaluation.detection.figures import DetectionReportConfig

    config = settings.report if settings is not None else DetectionReportConfig()
    if job.data is None and settings is not None:
        splits = split_scenes(open_scenes(settings.data, progress), settings.data.split, progress)
    else:
        splits = _others(open_scenes(_scenes_config(job, detector.about), progress))
    own = job.data is None and job.split != "validation"
    if not own:
        config = config.model_copy(update={"threshold": detector.about.threshold})
    chosen = _found(detector, splits.validation, "validation pictures", progress, tta=job.tta) if own else None
    pictures = _part(splits, job.split)
    reported = _found(detector, pictures, f"{job.split} pictures", progress, tta=job.tta)
    if reported is None:
        raise DataError(f"no picture is in the split '{job.split}': take another one, --split all for example.")
    facts = RunFacts(make_folder(job.output), adapter, Adapter.load(adapter), settings, job.part)
    page, figures = _measured(facts, detector, splits, pictures, reported, chosen, config, progress)
    return RunResult(None, adapter, {}, page, figures)


def _measured(
    facts: RunFacts,
    detector: Detector,
    splits: SceneSplits,
    pictures: LabelledScenes,
    reported: Found,
    chosen: Found | None,
    config: DetectionReportConfig,
    progress: RecordingProgress,
) -> tuple[Path, dict[str, float]]:
    """Write the report; return its page and the figures by name, the threshold among them."""
    from visionpeft.evaluation.detection.about import DetectionAbout, data_facts
    from visionpeft.evaluation.detection.report import write_detection_report
    from visionpeft.evaluation.report_data import METRICS

    about = DetectionAbout(**run_facts(facts, detector.base, progress), **data_facts(splits))
    page = write_detection_report(
        facts.folder, test=reported, validation=chosen, pictures=pictures.image, about=about, config=config
    )
    figures = json.loads((facts.folder / METRICS).read_text(encoding="utf-8"))["figures"]
    operating = {name: figures["operating"][name] for name in ("precision", "recall", "f1")}
    named = {**figures["coco"]["overall"], **operating, "threshold": figures["threshold"]}
    return page, {name: float(value) for name, value in named.items() if value is not None}


def _found(
    detector: Detector, scenes: LabelledScenes, label: str, progress: Progress, *, tta: bool = False
) -> Found | None:
    return detector.evaluation(scenes, label=label, tta=tta, progress=progress) if len(scenes) else None


def _others(scenes: LabelledScenes) -> SceneSplits:
    """Other data as it splits itself; where it does not, all of it is the test."""
    from visionpeft.data.detection.splits import SceneSplits

    given = [scene.split or "test" for scene in scenes.scenes]
    parts = [[row for row, split in enumerate(given) if split == name] for name in ("train", "validation", "test")]
    return SceneSplits(*(scenes.subset(rows) for rows in parts))


def _part(splits: SceneSplits, name: str) -> LabelledScenes:
    if name != "all":
        return getattr(splits, name)
    return replace(splits.train, scenes=(*splits.train.scenes, *splits.validation.scenes, *splits.test.scenes))


def _scenes_config(job: Evaluation, about: DetectorAbout) -> ScenesConfig:
    """Settings of other pictures: a YAML file of them, a COCO json, or a folder of YOLO or VOC."""
    from visionpeft.config import validate
    from visionpeft.config.source import Source, apply_overrides, read_source
    from visionpeft.data.detection.settings import ScenesConfig

    path = job.data
    if path is None:
        raise ConfigError("name the pictures with --data.")
    if path.suffix in (".yaml", ".yml"):
        source = read_source(path, job.overrides)
    else:
        source = apply_overrides(Source("--data", {"source": _source_of(path)}), job.overrides)
    return validate(ScenesConfig, replace(source, values={"labels": list(about.labels), **source.values}))


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

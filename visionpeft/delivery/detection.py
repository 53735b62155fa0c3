"""What a detection run leaves: the adapter with its threshold, the figures and the report of the test pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visionpeft.progress import SILENT, Progress, RecordingProgress

if TYPE_CHECKING:
    from pathlib import Path

    from visionpeft.config import DetectRun
    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.delivery.result import RunResult
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

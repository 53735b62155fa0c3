"""The demo of detection: where on a picture five subjects are that the base has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult

COUNT, SHORT_COUNT, STEPS, SHORT_STEPS, SIDE = 240, 12, 360, 4, 192


def demo(output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
    """Compose scenes in ``output/pictures`` and train a detector on them."""
    from visionpeft.config import config_from
    from visionpeft.demo.place import composed
    from visionpeft.demo.scenes import write_boxes
    from visionpeft.run import train

    count = SHORT_COUNT if short else COUNT
    boxes = composed(output, "pictures", lambda folder: write_boxes(folder, count, SIDE, seed=0), progress)
    return train(config_from(demo_settings(boxes.parent, output, short=short), name="the demo"), progress=progress)


def demo_settings(folder: Path, output: Path, *, short: bool = False) -> dict[str, Any]:
    """Return settings to learn from the scenes that ``scenes.write_boxes`` wrote to a folder."""
    from visionpeft.demo.place import run_settings

    train = {"batch_size": 4, "learning_rate": {"encoder": 1e-3, "decoder": 1e-3, "heads": 5e-3}}
    return {
        "task": "detect",
        "base": "visionpeft/emoji-detr",
        "data": {
            "source": {"format": "coco", "folder": str(folder), "annotations": "boxes.json"},
            "split": {"validation": 0.1, "test": 0.25},
            "image_size": SIDE,
        },
        "train_boxes": False,  # those of the base fit already
        "adapter": {"method": "lora", "rank": 16, "targets": "transformer"},
        "report": {"resamples": 50 if short else 500},
        **run_settings(output, train, steps=SHORT_STEPS if short else STEPS, evaluations=3),
    }

"""The demo of detection: where on a picture five subjects are that the base has never seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult

COUNT, SHORT_COUNT, STEPS, SHORT_STEPS, SIDE = 240, 12, 360, 4, 192


def demo(output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
    """Compose scenes in ``output/pictures``, train a detector on them, and write adapter and report to ``output``.

    Args:
        output: the run's folder; it must not exist yet.
        short: a few pictures and steps only, to see that everything works.
        progress: where phases are shown.

    Raises:
        VisionPeftError: the folder exists or cannot be written.
    """
    from visionpeft.config import config_from
    from visionpeft.demo.place import new_folder
    from visionpeft.demo.scenes import write_boxes
    from visionpeft.run import train

    folder = new_folder(output) / "pictures"
    with progress.phase("composing pictures", 1) as bar:
        write_boxes(folder, SHORT_COUNT if short else COUNT, SIDE, seed=0)
        bar.advance()
    return train(config_from(demo_settings(folder, output, short=short), name="the demo"), progress=progress)


def demo_settings(folder: Path, output: Path, *, short: bool = False) -> dict[str, Any]:
    """Return settings to learn from the scenes that ``scenes.write_boxes`` wrote to a folder."""
    steps = SHORT_STEPS if short else STEPS
    return {
        "task": "detect",
        "base": "visionpeft/emoji-detr",
        "data": {
            "source": {"format": "coco", "folder": str(folder), "annotations": "boxes.json"},
            "split": {"validation": 0.1, "test": 0.25},
            "image_size": SIDE,
        },
        "adapter": {"method": "lora", "rank": 16, "targets": "transformer"},
        "train": {
            "steps": steps,
            "batch_size": 4,
            "learning_rate": {"encoder": 1e-3, "decoder": 1e-3, "heads": 2e-3},
            "schedule": "cosine",
            "warmup": steps // 20,
            "checkpoint_every": steps // 2,
            "evaluate_every": max(1, steps // 3),
        },
        "report": {"resamples": 50 if short else 500},
        "output": str(output),
        "resume": "auto",  # the pictures are in the folder already
    }

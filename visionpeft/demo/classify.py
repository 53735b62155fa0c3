"""The demo of classification: which of five subjects that the base has never seen is on a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult

COUNTS = {"cactus": 120, "octopus": 100, "owl": 80, "robot": 60, "sailboat": 40}
"""Pictures of each subject: unbalanced, as collections are."""

SHORT_COUNT, STEPS, SHORT_STEPS, SIDE = 12, 240, 4, 96


def demo(output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
    """Compose pictures in ``output/pictures`` and train a classifier on them."""
    from visionpeft.config import config_from
    from visionpeft.demo.place import composed
    from visionpeft.demo.scenes import write_classes
    from visionpeft.run import train

    counts = dict.fromkeys(COUNTS, SHORT_COUNT) if short else COUNTS
    table = composed(output, "pictures", lambda folder: write_classes(folder, counts, SIDE, seed=0), progress)
    return train(config_from(demo_settings(table, output, short=short), name="the demo"), progress=progress)


def demo_settings(table: Path, output: Path, *, short: bool = False) -> dict[str, Any]:
    """Return settings to learn from the table that ``scenes.write_classes`` wrote."""
    from visionpeft.demo.place import run_settings

    train = {"batch_size": 16, "learning_rate": {"model": 1e-3, "heads": 2e-3}}
    return {
        "task": "classify",
        "base": "visionpeft/emoji-vit",
        "data": {
            "source": {"format": "table", "path": str(table), "patient": "patient"},
            "split": {"fractions": [0.6, 0.2, 0.2]},
            "augment": {"flip_horizontal": True},
        },
        "adapter": {"method": "lora", "rank": 8, "targets": "all-linear"},
        "loss": {"kind": "cross-entropy", "smoothing": 0.05},
        "class_weights": "balanced",
        "report": {"subgroups": ["camera"], "resamples": 100 if short else 1000},
        **run_settings(output, train, steps=SHORT_STEPS if short else STEPS, evaluations=6),
    }

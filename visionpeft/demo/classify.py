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
    """Compose pictures in ``output/pictures``, train a classifier on them, and write adapter and report to ``output``.

    Args:
        output: the run's folder; it must not exist yet.
        short: a few pictures and steps only, to see that everything works.
        progress: where phases are shown.

    Raises:
        VisionPeftError: the folder exists or cannot be written.
    """
    from visionpeft.config import config_from
    from visionpeft.demo.place import new_folder
    from visionpeft.demo.scenes import write_classes
    from visionpeft.run import train

    counts = dict.fromkeys(COUNTS, SHORT_COUNT) if short else COUNTS
    folder = new_folder(output) / "pictures"
    with progress.phase("composing pictures", 1) as bar:
        table = write_classes(folder, counts, SIDE, seed=0)
        bar.advance()
    return train(config_from(demo_settings(table, output, short=short), name="the demo"), progress=progress)


def demo_settings(table: Path, output: Path, *, short: bool = False) -> dict[str, Any]:
    """Return settings to learn from the table that ``scenes.write_classes`` wrote."""
    steps = SHORT_STEPS if short else STEPS
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
        "train": {
            "steps": steps,
            "batch_size": 16,
            "learning_rate": {"model": 1e-3, "heads": 2e-3},
            "schedule": "cosine",
            "warmup": steps // 20,
            "checkpoint_every": steps // 2,
            "evaluate_every": max(1, steps // 6),
        },
        "report": {"subgroups": ["camera"], "resamples": 100 if short else 1000},
        "output": str(output),
        "resume": "auto",  # the pictures are in the folder already
    }

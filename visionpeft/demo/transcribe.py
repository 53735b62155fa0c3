"""The demo of transcription: spoken digits of someone whom the base has never heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult

STEPS, SHORT_STEPS = 120, 4
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
"""Whose recall is reported, as that of a trade's words."""


def demo(output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
    """Train on the embedded recordings of one speaker."""
    from visionpeft.config import config_from
    from visionpeft.demo.place import new_folder
    from visionpeft.run import train

    settings = config_from(demo_settings(new_folder(output), short=short), name="the demo")
    return train(settings, progress=progress)


def demo_settings(output: Path, *, short: bool = False) -> dict[str, Any]:
    """Return settings to learn from the embedded recordings."""
    from visionpeft.demo.place import run_settings
    from visionpeft.models.base import ASSETS

    train = {"batch_size": 8, "learning_rate": 1e-3}
    return {
        "task": "transcribe",
        "base": "visionpeft/small-whisper",
        "data": {
            "source": {"format": "audiofolder", "folder": str(ASSETS / "speech")},
            "split": {"validation": 0.15, "sentence": "off"},
            "augment": {"speed": 0.5, "noise": 0.25, "time_masks": 2, "mel_masks": 2},
            "bucket": 16,
        },
        "adapter": {"method": "lora", "rank": 16, "targets": ["attention", "mlp"]},
        "report": {"terms": DIGITS, "lengths": [2.8, 3.0], "resamples": 50 if short else 500},
        **run_settings(output, train, steps=SHORT_STEPS if short else STEPS, evaluations=4),
    }

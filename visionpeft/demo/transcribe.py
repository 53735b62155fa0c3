"""The demo of transcription: spoken digits of a speaker whom the base has never heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult

SPEECH = Path(__file__).parent.parent / "assets" / "speech"
STEPS, SHORT_STEPS = 240, 4


def demo(output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
    """Train the embedded Whisper on the speaker's strings of digits, and write adapter and report to ``output``.

    Args:
        output: the run's folder; it must not exist yet.
        short: a few steps only, to see that everything works.
        progress: where phases are shown.

    Raises:
        VisionPeftError: the folder exists or cannot be written.
    """
    from visionpeft.config import config_from
    from visionpeft.demo.place import new_folder
    from visionpeft.run import train

    new_folder(output)
    return train(config_from(demo_settings(output, short=short), name="the demo"), progress=progress)


def demo_settings(output: Path, *, short: bool = False) -> dict[str, Any]:
    """Return settings to learn from the speaker in the package."""
    steps = SHORT_STEPS if short else STEPS
    return {
        "task": "transcribe",
        "base": "visionpeft/small-whisper",
        "data": {
            "source": {"format": "audiofolder", "folder": str(SPEECH)},
            "split": {"validation": 0.15, "sentence": "off"},
            "augment": {"speed": 0.5, "noise": 0.5, "time_masks": 1, "mel_masks": 1},
        },
        "adapter": {"method": "lora", "rank": 16, "targets": ["attention", "mlp"]},
        "train": {
            "steps": steps,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup": steps // 20,
            "checkpoint_every": steps // 2,
            "evaluate_every": max(1, steps // 4),
        },
        "report": {"resamples": 50 if short else 500},
        "output": str(output),
        "resume": "auto",  # the folder is there already
    }

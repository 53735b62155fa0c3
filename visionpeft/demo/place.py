"""Where a demo writes, and what its settings share with those of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from visionpeft.errors import OutputError
from visionpeft.progress import Progress

Made = TypeVar("Made")


def new_folder(path: Path) -> Path:
    """Make a folder and return it.

    Raises:
        OutputError: something is there already, or it cannot be made.
    """
    if path.exists():
        raise OutputError(f"{path} exists: nothing is written over. Name another folder with --output.")
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be made: {error.strerror}. Name another one.") from error
    return path


def composed(output: Path, name: str, compose: Callable[[Path], Made], progress: Progress) -> Made:
    """Make a demo's folder and have its data made in ``output/name``; return what ``compose`` returns of them.

    Raises:
        OutputError: as :func:`new_folder`.
    """
    folder = new_folder(output) / name
    with progress.phase(f"composing {name}", 1) as bar:
        made = compose(folder)
        bar.advance()
    return made


def run_settings(output: Path, train: dict[str, Any], *, steps: int, evaluations: int) -> dict[str, Any]:
    """Return the settings "train", "output" and "resume" of a demo.

    Args:
        output: the run's folder.
        train: batch size and learning rates.
        steps: of training; two checkpoints are written on the way.
        evaluations: how often it is measured, spread evenly.
    """
    schedule = {
        "steps": steps,
        "schedule": "cosine",
        "warmup": steps // 20,
        "checkpoint_every": steps // 2,
        "evaluate_every": max(1, steps // evaluations),
    }
    return {"train": train | schedule, "output": str(output), "resume": "auto"}  # the data are in the folder already

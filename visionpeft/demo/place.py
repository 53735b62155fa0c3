"""Where a demo writes."""

from __future__ import annotations

from pathlib import Path

from visionpeft.errors import OutputError


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

"""The errors a user may meet. Each is one clear line: the thing, what was expected, the remedy, the nearest name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class VisionPeftError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: one line that names the thing, what was expected and the remedy.

    Attributes:
        exit_status: what the command line returns for it: 2 is bad input, 1 is work that failed.
    """

    exit_status: int = 2


class ConfigError(VisionPeftError):
    """A setting is unknown, of the wrong type, or contradicts another; the message may hold one line a fault."""


class DataError(VisionPeftError):
    """A picture, folder or table cannot be used as training data."""


class BaseModelError(VisionPeftError):
    """A base model cannot be found, read or recognised."""


class TargetError(VisionPeftError):
    """A target matches no module of the model."""


class AdapterError(VisionPeftError):
    """An adapter does not fit: wrong base, missing or unexpected tensors, a name in use, an operation it cannot do."""


class FileFormatError(VisionPeftError):
    """A file is not what its reader expects: truncated, a pickle, unknown keys, shapes that do not fit."""


class OutputError(VisionPeftError):
    """An output cannot be written: it exists, is in use, or the disk is full."""


class MissingExtraError(VisionPeftError):
    """An optional package is needed; the message says what to install."""


class ResourceError(VisionPeftError):
    """Memory ran out while working; the message says which setting to change."""


class TrainingError(VisionPeftError):
    """Training had to stop: a loss that is not a number, for example."""

    exit_status = 1


class ProcessError(TrainingError):
    """One of several processes ended the run.

    Args:
        message: one line.
        exit_status: what the command line returns for it.
        told: whether another process tells it to the user.

    Attributes:
        told: as given.
    """

    def __init__(self, message: str, exit_status: int = 1, *, told: bool = False) -> None:
        super().__init__(message)
        self.exit_status, self.told = exit_status, told


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option nearest to ``name``, or ``""`` where none is near."""
    near = get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""

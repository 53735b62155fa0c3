"""The demos: each teaches an embedded base something it has never seen, without a network, and ends in a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from visionpeft.demo import classify, detect, dreambooth, transcribe
from visionpeft.demo.dreambooth import demo as demo
from visionpeft.demo.dreambooth import demo_settings as demo_settings
from visionpeft.errors import ConfigError, did_you_mean
from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.delivery import RunResult


class Demo(Protocol):
    """Makes a run."""

    def __call__(self, output: Path, *, short: bool = False, progress: Progress = SILENT) -> RunResult | None:
        """Make what is learned from, train on it, and write adapter and report to ``output``.

        Args:
            output: the run's folder; it must not exist yet.
            short: a few steps only, on little, to see that everything works.
            progress: where phases are shown.

        Raises:
            VisionPeftError: the folder exists or cannot be written.
        """
        ...


DEMOS: dict[str, Demo] = {
    "dreambooth": dreambooth.demo,
    "classify": classify.demo,
    "detect": detect.demo,
    "transcribe": transcribe.demo,
}
"""One for every task."""


def demo_named(name: str) -> Demo:
    """Return the demo of a task.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in DEMOS:
        raise ConfigError(f"'{name}' is no demo: one of {', '.join(DEMOS)}.{did_you_mean(name, DEMOS)}")
    return DEMOS[name]

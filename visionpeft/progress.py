"""What a long job tells about itself: one bar a phase, with the time left."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class Bar(Protocol):
    """One phase's bar."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by ``steps`` and show ``note`` (a loss, a file name) beside the bar."""
        ...


class Progress(Protocol):
    """Where phases are shown: a terminal, or nowhere."""

    def phase(self, label: str, total: int) -> AbstractContextManager[Bar]:
        """Open the bar of a phase of ``total`` steps; it closes with the context."""
        ...

    def say(self, line: str) -> None:
        """Print one clear line above the bars: a fallback, a warning, a result."""
        ...


class _SilentBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        del steps, note


class SilentProgress:
    """Shows no bars and says nothing: for tests and for processes other than the first."""

    @contextmanager
    def phase(self, label: str, total: int) -> Generator[Bar]:
        """Yield a bar that shows nothing."""
        del label, total
        yield _SilentBar()

    def say(self, line: str) -> None:
        """Drop the line."""
        del line


SILENT = SilentProgress()


class _TerminalBar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._bars.update(self._task, advance=steps, note=note)


class TerminalProgress:
    """Bars on standard error with the time spent and the time left; plain lines where it is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def phase(self, label: str, total: int) -> Generator[Bar]:
        """Show one bar until the context closes."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=self._console) as bars:
            yield _TerminalBar(bars, bars.add_task(label, total=total, note=""))

    def say(self, line: str) -> None:
        """Print the line above the bars."""
        self._console.print(line, highlight=False, markup=False)

"""What a long job tells about itself: one bar a phase, with the time left."""

from __future__ import annotations

import time
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
    """Where phases are shown: a terminal, or nowhere. Phases may be nested."""

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
        if note:
            self._bars.update(self._task, advance=steps, note=note)
        else:
            self._bars.update(self._task, advance=steps)


class TerminalProgress:
    """Bars on standard error with the time spent and the time left; a phase within a phase has its bar below."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._open = 0

    @contextmanager
    def phase(self, label: str, total: int) -> Generator[Bar]:
        """Show one bar until the context closes; an outer phase's bar stays when it is done, an inner one's goes."""
        task = self._bars.add_task(label, total=total, note="")
        if self._open == 0:
            self._bars.start()
        self._open += 1
        try:
            yield _TerminalBar(self._bars, task)
        finally:
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
            self._bars.remove_task(task)

    def say(self, line: str) -> None:
        """Print the line above the bars."""
        self._console.print(line, highlight=False, markup=False)


class RecordingProgress:
    """Passes everything on, and keeps what a report tells of it.

    Attributes:
        seconds: by phase; the time of a phase within a phase counts for the inner one alone.
        lines: what was said, in order, each once.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._inner: list[float] = []
        self.seconds: dict[str, float] = {}
        self.lines: list[str] = []

    @contextmanager
    def phase(self, label: str, total: int) -> Generator[Bar]:
        """Show the phase and time it."""
        self._inner.append(0.0)
        begun = time.monotonic()
        try:
            with self._shown.phase(label, total) as bar:
                yield bar
        finally:
            spent = time.monotonic() - begun
            own = spent - self._inner.pop()
            self.seconds[label] = self.seconds.get(label, 0.0) + own
            if self._inner:
                self._inner[-1] += spent

    def say(self, line: str) -> None:
        """Pass the line on and keep it."""
        if line not in self.lines:
            self.lines.append(line)
        self._shown.say(line)

"""Whether the thread that trains is alive: what it did last, and where it is, as another thread sees it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

_WAITING = (str(Path("torch", "distributed")), str(Path("visionpeft", "safefile.py")), str(Path("training", "log.py")))
"""Where a thread waits for what it can do nothing about: other processes, or a disk that takes in what is written."""


@dataclass(frozen=True)
class Sign:
    """One sign of life.

    Attributes:
        idle: seconds for which the thread has used no processor time; 0 where that cannot be told.
        waits: whether it waits for other processes, or for a disk to take what is written.
        place: "pictures.py:88 in read_picture", the innermost place in this package.
        done: whether it has come to the end.
    """

    idle: float
    waits: bool
    place: str
    done: bool = False

    def as_json(self) -> dict[str, float | bool | str]:
        """Return it as JSON values."""
        return asdict(self)


class Pulse:
    """Watches the thread that makes it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        known = getattr(time, "pthread_getcpuclockid", None)  # not on macOS
        self._clock: int | None = None if known is None else known(self._thread)
        self._used, self._since = -1.0, time.monotonic()

    def feel(self, done: bool = False) -> Sign:
        """Return how the thread is now."""
        used, now = 0.0 if self._clock is None else time.clock_gettime(self._clock), time.monotonic()
        if used != self._used or self._clock is None:
            self._used, self._since = used, now
        frames = list(_outwards(sys._current_frames().get(self._thread)))  # pyright: ignore[reportPrivateUsage]
        waits = any(place in frame.f_code.co_filename for frame in frames for place in _WAITING)
        return Sign(now - self._since, waits, _place(frames), done)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frames: list[FrameType]) -> str:
    """The innermost frame of this package, or of all where none is."""
    root = str(Path(__file__).parents[1])
    mine = [frame for frame in frames if frame.f_code.co_filename.startswith(root)] or frames
    return f"{Path(mine[0].f_code.co_filename).name}:{mine[0].f_lineno} in {mine[0].f_code.co_name}" if mine else ""

"""Being asked to stop: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

from visionpeft.errors import TrainingError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(TrainingError):
    """The run was asked to stop, and did so with a checkpoint."""

    exit_status = 130


class StopRequest:
    """While open, the first Ctrl-C or SIGTERM is remembered; a second one takes effect at once.

    Handlers can only be set in the main thread: elsewhere nothing is caught.

    Args:
        relayed: seconds after the first signal in which further ones are its copies: a launcher passes on to its
            processes what the terminal has sent to all of them.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self, relayed: float = 0.0) -> None:
        self.asked = False
        self._relayed, self._first = relayed, 0.0
        self._former: dict[signal.Signals, signal._HANDLER] = {}  # pyright: ignore[reportPrivateUsage]

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and time.monotonic() - self._first >= self._relayed:
            raise KeyboardInterrupt
        self._first = self._first if self.asked else time.monotonic()
        self.asked = True

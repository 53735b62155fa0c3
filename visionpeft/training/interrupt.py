"""Being asked to stop: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from visionpeft.errors import TrainingError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(TrainingError):
    """The run was asked to stop, and did so with a checkpoint."""

    exit_status = 130


class StopRequest:
    """While open, the first Ctrl-C or SIGTERM is remembered; a second one takes effect at once.

    Handlers can only be set in the main thread: elsewhere nothing is caught.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self) -> None:
        self.asked = False
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
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

"""Time spent in steps, without what is done between them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """Measures steps between looks at the device: the caller has waited for the device when it calls."""

    def __init__(self) -> None:
        self._since = perf_counter()
        self._step = 0

    def start(self, step: int) -> None:
        """Begin to measure at a step."""
        self._since, self._step = perf_counter(), step

    def lap(self, step: int, samples: int) -> dict[str, float]:
        """Return seconds a step and samples a second since the last lap, for ``samples`` a step; begin anew."""
        steps, seconds = step - self._step, max(perf_counter() - self._since, 1e-9)
        self.start(step)
        return {"seconds_per_step": seconds / max(1, steps), "samples_per_second": samples * steps / seconds}

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave out what is done inside."""
        begun = perf_counter()
        try:
            yield
        finally:
            self._since += perf_counter() - begun

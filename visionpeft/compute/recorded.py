"""Work on a GPU that is recorded once as a CUDA graph and replayed: one launch from Python where there were thousands.

What is recorded reads and writes tensors that stay where they are. It must not wait for the device, and must be the
same kernels each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from visionpeft.errors import VisionPeftError

_WARM = 2
"""Runs of the work before it is recorded: libraries choose their kernels in them, and lazy state comes to be."""


class NotRecordableError(VisionPeftError):
    """Work could not be recorded; nothing of it was done."""


class Recorder:
    """Makes recordings that share one pool of memory.

    They are replayed one after another on the stream that is current, and none needs what another left in the pool.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def recording(self, work: Callable[[], None]) -> Recording:
        """Return a recording of ``work``, to be made when it has been run a few times."""
        return Recording(work, self._done_aside, self._graph)

    def _done_aside(self, work: Callable[[], None]) -> None:
        """Do the work on the stream that it will be recorded on, between what comes before and after."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def _graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work without doing it, and return what does it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            draws = torch.cuda.default_generators[torch.cuda.current_device()]
        before = draws.clone_state()
        try:
            # "thread_local": other threads may go on to prepare samples meanwhile
            whole = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
            with whole, masks_as_launched():
                work()
        except RuntimeError as reason:
            draws.graphsafe_set_state(before)  # a recording that broke off leaves it unable to draw outside of one
            raise NotRecordableError(str(reason).strip().partition("\n")[0]) from reason
        return graph.replay


@contextmanager
def masks_as_launched() -> Generator[None]:
    """Let transformers leave causal masks to the kernel within the context, as it does where nothing is recorded.

    Some of its versions take a recording for tracing and write masks out, for which another kernel attends, that rounds
    otherwise. Masks of padding, whose values a recording cannot look at, are written out as ever.
    """
    masks: Any = sys.modules.get("transformers.masking_utils")
    if masks is None:
        yield
        return
    told: Callable[[Tensor | None], bool] = masks.is_tracing

    def tracing(tensor: Tensor | None = None) -> bool:
        return tensor is not None and told(tensor)

    masks.is_tracing = tracing
    try:
        yield
    finally:
        masks.is_tracing = told


class Recording:
    """Work that is done as it is for the first times, then recorded, then replayed.

    Args:
        work: takes and gives nothing; it changes tensors that stay.
        done_aside: does work as it is.
        recorded: returns the work's replay, without doing it.
    """

    def __init__(
        self,
        work: Callable[[], None],
        done_aside: Callable[[Callable[[], None]], None],
        recorded: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        self._work, self._done_aside, self._recorded = work, done_aside, recorded
        self._warm = _WARM
        self._replay: Callable[[], None] | None = None

    def run(self) -> None:
        """Do the work once.

        Raises:
            NotRecordableError: it was to be recorded now and cannot be; it has not been done.
        """
        if self._warm > 0:
            self._warm -= 1
            self._done_aside(self._work)
            return
        if self._replay is None:
            self._replay = self._recorded(self._work)
        self._replay()

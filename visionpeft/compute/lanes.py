"""Copies between main memory and a GPU beside its computation, in an order that can be recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """How a tensor lies in memory; what it holds may be put anywhere in the same way."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int

    def within(self, memory: Tensor, start: int = 0) -> Tensor:
        """Return the tensor of this layout that begins at byte ``start`` of ``memory``, [bytes] uint8."""
        flat = memory[start : start + self.nbytes].view(self.dtype)
        return flat.as_strided(self.size, self.stride, flat.storage_offset())


def layout_of(tensor: Tensor) -> Layout | None:
    """Return how a tensor lies in memory; None where it has gaps or elements that are one and the same."""
    size, stride = tuple(tensor.shape), tuple(tensor.stride())
    if stride != torch.empty_like(tensor, device="meta").stride():
        return None
    return Layout(size, stride, tensor.dtype, tensor.numel() * tensor.element_size())


class Lane:
    """A stream of its own for copies in one direction. On a device without streams, copies are made at once.

    Every copy waits for what has been launched so far, and what needs it waits for it, by events alone: recorded
    together with the computation, it forks off and is joined again.

    Args:
        device: a CUDA device, or one without streams.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._recorded: bool | None = None  # whether the copies since the last join were; None: there are none

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> torch.cuda.Event | None:
        """Copy sources into targets, given as (target, source), and return what to wait for.

        Both have to stay until it has been waited for; what is in main memory has to be pinned.
        """
        if self._stream is None:
            for target, source in pairs:
                target.copy_(source)
            return None
        self._recorded = recording(self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._stream)
            return copied

    def wait(self, copied: torch.cuda.Event | None) -> None:
        """Let all that is launched from now on wait for a copy."""
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)

    def join(self) -> None:
        """Let all that is launched from now on wait for every copy."""
        if self._stream is not None and self._recorded == recording(self.device):
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._recorded = None


def recording(device: torch.device) -> bool:
    """Whether what is launched now is recorded rather than done."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def pinned(nbytes: int, device: torch.device) -> Tensor:
    """Return main memory that the device can be copied from and to beside its work, [nbytes] uint8."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")

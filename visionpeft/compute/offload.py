"""Activations that wait in main memory for the backward pass: copied away while later blocks compute, and back ahead.

What one call of a block keeps for its gradients is a stash. A tensor leaves the device when the next stash begins, by
when it has been copied; when the first of a stash is asked for, all of it is on its way back, and the stash before it
too. So the device holds the activations of two blocks at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft.compute.lanes import Lane, Layout, layout_of, pinned, recording
from visionpeft.compute.streaming import address

_LEAST = 1 << 16
"""Bytes of the smallest tensor that is worth a copy."""

_ENGINE: Any = torch.autograd.Variable._execution_engine  # pyright: ignore  # as torch's own data parallelism does


@dataclass
class _Kept:
    """A tensor in main memory, and on the device where it is still or again there."""

    memory: Tensor
    layout: Layout
    here: Tensor | None

    @property
    def host(self) -> Tensor:
        """The tensor in main memory."""
        return self.layout.within(self.memory)


@dataclass
class Stash:
    """What one call of a block keeps: by what tells its tensors apart, so that each is copied once.

    Attributes:
        before: the stash of the call before.
        weights: addresses of the block's own weights, which stay.
    """

    before: Stash | None
    weights: frozenset[int]
    kept: dict[Hashable, _Kept] = field(default_factory=dict[Hashable, _Kept])
    away: torch.cuda.Event | None = None
    back: torch.cuda.Event | None = None


class Offloading:
    """Keeps blocks' activations in main memory between the forward and the backward pass.

    Args:
        device: where the blocks compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out, self._in = Lane(device), Lane(device)
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._last: Stash | None = None
        self._asked: Stash | None = None
        self._recorded, self._ending = recording(device), False

    def stash(self, block: nn.Module) -> Stash:
        """Begin the stash of a block's call; the one before is on its way and leaves the device."""
        if recording(self._device) != self._recorded:
            self._forget()
        self._ending = False
        if self._last is not None:
            self._out.wait(self._last.away)
            for kept in self._last.kept.values():
                kept.here = None
        self._last = Stash(self._last, frozenset(address(p) for p in block.parameters()))
        return self._last

    def packed(self, stash: Stash, tensor: Tensor) -> Callable[[], Tensor] | None:
        """Send a tensor away and return what brings it back; None for one that stays."""
        layout = layout_of(tensor) if tensor.device.type == self._device.type else None
        if layout is None or layout.nbytes < _LEAST or address(tensor) in stash.weights:
            return None
        key = (tensor.data_ptr(), layout, tensor._version)
        if key not in stash.kept:
            free = self._free[layout.nbytes]
            memory = free.pop() if free else pinned(layout.nbytes, self._device)
            kept = stash.kept[key] = _Kept(memory, layout, tensor.detach())
            stash.away = self._out.copy([(kept.host, tensor.detach())])
        return lambda: self._unpacked(stash, key)

    def _unpacked(self, stash: Stash, key: Hashable) -> Tensor:
        """Return a tensor within a backward pass, whose stashes are asked for last to first."""
        if not self._ending:
            _ENGINE.queue_callback(self._end)
            self._ending = True
        if stash is not self._asked:
            self._let_go()
            self._asked = stash
            for wanted in (stash, stash.before):
                if wanted is not None:
                    self._bring_back(wanted)
            self._in.wait(stash.back)
        kept = stash.kept.get(key)
        if kept is None or kept.here is None:
            raise RuntimeError("offloaded activations are asked for once, last block first; set train.memory.offload=0")
        return kept.here

    def _bring_back(self, stash: Stash) -> None:
        absent = [kept for kept in stash.kept.values() if kept.here is None]
        for kept in absent:
            kept.here = torch.empty_strided(kept.layout.size, kept.layout.stride, dtype=kept.layout.dtype,
                                            device=self._device)  # fmt: skip
        if absent:
            stash.back = self._in.copy([(kept.here, kept.host) for kept in absent if kept.here is not None])

    def _let_go(self) -> None:
        """Give up the stash whose block is done with: its tensors, and its memory for another."""
        if self._asked is not None:
            for kept in self._asked.kept.values():
                self._free[kept.layout.nbytes].append(kept.memory)
            self._asked.kept.clear()
            self._asked = None

    def _end(self) -> None:
        """Leave nothing on its way when a backward pass ends: what was recorded has to begin and end with nothing."""
        self._out.join()
        self._in.join()
        self._let_go()
        self._forget()

    def _forget(self) -> None:
        self._last = self._asked = None
        self._recorded, self._ending = recording(self._device), False

"""How torch's allocator on a GPU lays a computation's tensors out: what is allocated, and what is reserved for it.

Requests are rounded up to 512 bytes. Those up to 1 MiB come from segments of 2 MiB, larger ones from segments of
20 MiB, those from 10 MiB on from segments of their own, rounded up to 2 MiB. The smallest free block that is large
enough is taken and split; blocks that are freed join their free neighbours, and segments stay reserved.
(c10/cuda/CUDACachingAllocator.cpp of torch 2.11 to 2.13, with its settings as they come.)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from visionpeft.compute.planning.ledger import Event

_UNIT = 512
_MIB = 1 << 20
_SMALL, _SMALL_SEGMENT = _MIB, 2 * _MIB
_LARGE, _LARGE_SEGMENT, _STEP = 10 * _MIB, 20 * _MIB, 2 * _MIB


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU.

    Attributes:
        allocated: the most that tensors took at once.
        reserved: the most that torch's allocator held of the GPU for it.
    """

    allocated: int
    reserved: int


@dataclass(eq=False)
class _Block:
    size: int
    small: bool
    before: _Block | None = None
    after: _Block | None = None
    free: bool = True
    order: int = 0


class Allocator:
    """Torch's allocator for one stream of one device.

    Attributes:
        allocated: bytes of tensors now, rounded as they are.
        reserved: bytes held of the GPU.
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self._used: dict[int, _Block] = {}
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}
        self._order = 0

    def take(self, number: int, size: int) -> None:
        """Allocate ``size`` bytes under a number."""
        size = -(-size // _UNIT) * _UNIT
        small = size <= _SMALL
        block = self._found(size, small) or self._segment(size, small)
        rest = block.size - size
        if rest >= (_UNIT if small else _SMALL + 1):
            self._split(block, size)
        block.free = False
        self._used[number] = block
        self.allocated += block.size

    def give(self, number: int) -> None:
        """Free what was allocated under a number."""
        block = self._used.pop(number)
        self.allocated -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._remove(neighbour)
                self._join(block, neighbour)
        block.free = True
        self._add(block)

    def holds(self, number: int) -> bool:
        """Whether something is allocated under a number."""
        return number in self._used

    def used_segments(self) -> int:
        """Bytes of the segments in which something is: what stays when the rest is given back to the GPU."""
        unused = sum(block.size for free in self._free.values() for _, _, block in free
                     if block.before is None and block.after is None)  # fmt: skip
        return self.reserved - unused

    def _found(self, size: int, small: bool) -> _Block | None:
        free = self._free[small]
        place = bisect_left(free, (size, -1))
        return free.pop(place)[2] if place < len(free) else None

    def _segment(self, size: int, small: bool) -> _Block:
        large = _LARGE_SEGMENT if size < _LARGE else -(-size // _STEP) * _STEP
        whole = _SMALL_SEGMENT if small else large
        self.reserved += whole
        return _Block(whole, small)

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.size - size, block.small, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.size, block.after = size, rest
        self._add(rest)

    def _join(self, block: _Block, other: _Block) -> None:
        if other is block.before:
            block.before = other.before
            if other.before is not None:
                other.before.after = block
        else:
            block.after = other.after
            if other.after is not None:
                other.after.before = block
        block.size += other.size

    def _add(self, block: _Block) -> None:
        self._order += 1
        block.order = self._order
        insort(self._free[block.small], (block.size, block.order, block))

    def _remove(self, block: _Block) -> None:
        free = self._free[block.small]
        free.pop(bisect_left(free, (block.size, block.order)))


def memory_of(events: Iterable[Event]) -> Memory:
    """Return what a computation takes at its most."""
    allocator, allocated = Allocator(), 0
    for number, size, _ in events:
        if size:
            allocator.take(number, size)
            allocated = max(allocated, allocator.allocated)
        else:
            allocator.give(number)
    return Memory(allocated, allocator.reserved)

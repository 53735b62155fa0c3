"""Frozen weights that wait in main memory and are copied to the GPU ahead of their use; they never travel back.

A block's weights lie side by side in pinned memory. A few slots on the device, each as large as the largest block,
hold those that are in use or on their way. While a block computes, the next ones are copied by a stream of their own;
which come next is what came next the last time, so forward and backward passes are foreseen alike, and a wrong guess
costs time, never a value.

The backward pass needs frozen weights again, for the gradients of inputs. What it would keep of a slot is kept as a
place in the block, and looked up when it is asked for. Gradients are computed in the exact reverse of the forward
order, so when one block's weights are asked for, all later blocks are done with theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visionpeft.adapters.slots import Part
from visionpeft.compute.lanes import Lane, Layout, layout_of, pinned, recording

SLOTS = 3
"""The block in use, and the next two."""

_CHUNK = 256 << 20
"""Bytes of pinned memory taken at once: a power of two, to which the allocator would round up."""

_ALIGNED = 512
_ENGINE: Any = torch.autograd.Variable._execution_engine  # pyright: ignore  # as torch's own data parallelism does


class _Piece(NamedTuple):
    """One tensor of a block: its place among the block's bytes, and where it waits."""

    tensor: Tensor
    start: int
    layout: Layout
    home: Tensor


class Lookup(NamedTuple):
    """What the backward pass keeps of a block's weights instead of them."""

    block: int
    start: int
    layout: Layout


class Streaming:
    """Keeps blocks' frozen weights in main memory and lends them to the device.

    Args:
        blocks: in the order in which they most likely run.
        model: they belong to; what a block shares with the rest of it stays where it is.
        device: where they compute.
        slots: how many blocks may be on the device at a time, at least 2.
        lane: makes the copies; None: one of its own.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], model: nn.Module, device: torch.device, *, slots: int = SLOTS,
        lane: Lane | None = None,
    ) -> None:  # fmt: skip
        self._lane = lane or Lane(device)
        self._homes, self._pieces = _packed(_own_tensors(blocks, model), device)
        largest = max(len(home) for home in self._homes)
        self._slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(min(slots, len(blocks)))]
        self._by_address = {address(slot): number for number, slot in enumerate(self._slots) if address(slot)}
        self._chunks = {address(home) for home in self._homes}
        self._following: dict[tuple[int | None, int | None], int] = {}
        self._lent: int | None = None
        self._forget()

    @property
    def bytes(self) -> int:
        """Bytes that wait in main memory."""
        return sum(len(home) for home in self._homes)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the slots on the device."""
        return sum(len(slot) for slot in self._slots)

    def keeps(self, tensor: Tensor) -> bool:
        """Whether a tensor waits in main memory for its turn or is lent, and so is not to be moved."""
        place = address(next(plain_tensors(tensor)))
        return place in self._chunks or place in self._by_address

    @contextmanager
    def lent(self, block: int, *, backward: bool = False) -> Generator[None]:
        """Have a block's weights on the device while the context lasts.

        Args:
            block: its place.
            backward: whether this happens within a backward pass, where activations are computed again: the gradients
                that are computed of them next need the weights too, so they stay until another block's are asked for.
        """
        slot = self._slots[self._arrived(block, backward=backward)]
        self.recall()
        self._lent = block
        for piece in self._pieces[block]:
            piece.tensor.data = piece.layout.within(slot, piece.start)
        try:
            yield
        finally:
            if not backward:
                self.recall()
            if not torch.is_grad_enabled():  # no backward pass will end it: a recorded step may be replayed next
                self._lane.join()

    def recall(self) -> None:
        """Have every weight wait in main memory."""
        for piece in self._pieces[self._lent] if self._lent is not None else ():
            piece.tensor.data = piece.home
        self._lent = None

    def packed(self, tensor: Tensor) -> Lookup | None:
        """Return what to keep for the backward pass instead of a tensor; None for one that is not in a slot."""
        slot = self._by_address.get(address(tensor))
        block = None if slot is None else self._held[slot]
        if block is None:
            return None
        size, stride, width = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if tensor.numel() else -1
        return Lookup(
            block, int(tensor.storage_offset()) * width, Layout(size, stride, tensor.dtype, (1 + last) * width)
        )

    def unpacked(self, kept: Lookup) -> Tensor:
        """Return, within a backward pass, the tensor that ``packed`` was given; it is there until the next block's."""
        slot = self._slots[self._arrived(kept.block, backward=True)]
        return kept.layout.within(slot, kept.start)

    def _arrived(self, block: int, *, backward: bool) -> int:
        """Return the slot that a block is in, which is waited for, and send for the blocks after it."""
        if recording(self._lane.device) != self._recorded:
            self._forget()
        if backward and not self._ending:
            _ENGINE.queue_callback(self._end)
        self._ending = backward
        if block == self._current and backward and block in self._held:
            return self._held.index(block)
        self._drop_changed()
        self._following[self._before, self._current] = block
        self._before, self._current = self._current, block
        expected = self._expected(len(self._slots) - 1 if backward or torch.is_grad_enabled() else 1)
        wanted = {block, *expected}
        for each in (block, *expected):
            if each not in self._held:
                self._send(each, wanted)
        slot = self._held.index(block)
        self._needed(slot)
        self._lane.wait(self._copied[slot])
        return slot

    def _expected(self, most: int) -> list[int]:
        """The blocks that came after the present one the last time."""
        before, current, found = self._before, self._current, list[int]()
        while len(found) < min(most, len(self._slots) - 1):
            following = self._following.get((before, current))
            if following is None:
                break
            found.append(following)
            before, current = current, following
        return found

    def _send(self, block: int, wanted: set[int]) -> None:
        """Copy a block into the slot that was needed longest ago, of those that hold none of the wanted ones."""
        slot = next(n for n in self._order if self._held[n] not in wanted)
        self._needed(slot)
        home = self._homes[block]
        self._copied[slot] = self._lane.copy([(self._slots[slot][: len(home)], home)])
        self._held[slot] = block
        self._written[slot] = self._writes(block)

    def _drop_changed(self) -> None:
        """Forget what has been written to since it was copied, as when adapters are merged."""
        for slot, held in enumerate(self._held):
            if held is not None and self._writes(held) != self._written[slot]:
                self._held[slot] = None

    def _writes(self, block: int) -> int:
        return sum(piece.tensor._version for piece in self._pieces[block])

    def _needed(self, slot: int) -> None:
        self._order.remove(slot)
        self._order.append(slot)

    def _end(self) -> None:
        """Leave nothing on its way when a backward pass ends: what was recorded has to begin and end with nothing."""
        self._lane.join()
        self.recall()
        self._forget()

    def _forget(self) -> None:
        self._held: list[int | None] = [None for _ in self._slots]
        self._written = [0 for _ in self._slots]
        self._order = list(range(len(self._slots)))  # from the one that was needed longest ago
        self._copied: list[torch.cuda.Event | None] = [None for _ in self._slots]
        self._before: int | None = None
        self._current: int | None = None
        self._recorded, self._ending = recording(self._lane.device), False


def frozen_tensors(block: nn.Module) -> Iterator[Tensor]:
    """Yield a block's frozen weights and buffers, adapters' aside; a quantised weight is the tensors it is made of."""
    if isinstance(block, Part):
        return
    for tensor in (*block.parameters(recurse=False), *block.buffers(recurse=False)):
        if not tensor.requires_grad and tensor.numel():
            yield tensor
    for child in block.children():
        yield from frozen_tensors(child)


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a tensor is made of: codes and scales of a quantised one, else itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names: list[str] = tensor.__tensor_flatten__()[0]  # pyright: ignore
    for name in names:
        yield from plain_tensors(getattr(tensor, name))


def address(tensor: Tensor) -> int:
    """Return where a tensor's memory begins, the same for all tensors that share it; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _own_tensors(blocks: Sequence[nn.Module], model: nn.Module) -> list[list[Tensor]]:
    """Each block's tensors that lie densely and are used nowhere else in the model."""
    uses = Counter(id(t) for _, t in model.named_parameters(remove_duplicate=False))
    uses.update(id(t) for _, t in model.named_buffers(remove_duplicate=False))
    own = [[t for t in frozen_tensors(block) if uses[id(t)] == 1] for block in blocks]
    return [[part for t in tensors for part in plain_tensors(t) if layout_of(part)] for tensors in own]


def _packed(owned: Sequence[Sequence[Tensor]], device: torch.device) -> tuple[list[Tensor], list[list[_Piece]]]:
    """Put every block's tensors side by side into pinned memory; return the blocks' bytes, and what lies where."""
    homes: list[Tensor] = []
    pieces: list[list[_Piece]] = []
    for chunk in _chunked([sum(map(_room, tensors)) for tensors in owned]):
        memory = pinned(sum(chunk), device)
        for home in memory.split(chunk):
            pieces.append(list(_moved_in(owned[len(homes)], home)))
            homes.append(home)
    return homes, pieces


def _chunked(sizes: Sequence[int]) -> list[list[int]]:
    """The sizes in order, in groups of at most a chunk's bytes."""
    groups: list[list[int]] = [[]]
    for size in sizes:
        if groups[-1] and sum(groups[-1]) + size > _CHUNK:
            groups.append([])
        groups[-1].append(size)
    return groups


def _moved_in(tensors: Sequence[Tensor], home: Tensor) -> Iterator[_Piece]:
    start = 0
    for tensor in tensors:
        layout = layout_of(tensor)
        if layout is not None:
            piece = _Piece(tensor, start, layout, layout.within(home, start))
            piece.home.copy_(tensor.detach())
            tensor.data = piece.home
            yield piece
            start += _room(tensor)


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED

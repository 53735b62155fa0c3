"""What the adapters must know of a frozen layer whose weight is kept in a code of few bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionpeft.adapters.slots import Move, keeping_float32


class Coded(nn.Module):
    """A layer that makes its weight anew for each product; ``weight`` is what it makes, in the type it is turned to.

    Attributes:
        codes: the weight's integers, a parameter; what else belongs to them are buffers, in their own type whatever
            the model is turned to.
        dtype: of the weight where nobody asks for another.
    """

    codes: nn.Parameter
    dtype: torch.dtype

    def stored(self) -> tuple[Tensor, ...]:
        """Return what is kept: the codes, then the buffers."""
        return (self.codes, *(buffer for buffer in self._buffers.values() if buffer is not None))

    def made(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return the weight of what is kept, in a type."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight as the layer's products see it."""
        return self.made(self.stored(), self.dtype)

    def _apply(self, fn: Move, recurse: bool = True) -> Coded:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        buffers = {name: keeping_float32(fn)(buffer) for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        self._buffers.update(buffers)
        return self

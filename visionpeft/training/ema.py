"""The exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """A moving average of parameters, with a warmup: the decay after step t is min(decay, (1 + t) / (10 + t)).

    The warmup (that of the TensorFlow implementation) forgets the untrained start: it allows 0.9 at step 81 and 0.999
    at step 9,000.

    Args:
        parameters: float32, on one device; their present values begin the average.
        decay: in (0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: list[Tensor] = list(self.parameters)
        # One kernel for all of them.
        torch._foreach_lerp_(self.averages, current, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

    @contextmanager
    def swapped(self) -> Generator[None]:
        """Put the average into the model, and the very same weights back afterwards."""
        kept = [p.detach().clone() for p in self.parameters]
        _fill(self.parameters, self.averages)
        try:
            yield
        finally:
            _fill(self.parameters, kept)


@torch.no_grad()
def _fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)

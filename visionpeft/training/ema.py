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
        self._pull = torch.zeros((), device=parameters[0].device)

    def begin(self, step: int) -> None:
        """Set how far step ``step`` (from 0) pulls the averages."""
        self._pull.fill_(1.0 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as the step leaves them: one kernel for all of them, thrice."""
        current: list[Tensor] = list(self.parameters)
        gaps = torch._foreach_sub(current, self.averages)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
        torch._foreach_mul_(gaps, self._pull)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
        torch._foreach_add_(self.averages, gaps)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

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

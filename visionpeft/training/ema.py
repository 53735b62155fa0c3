"""The exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from visionpeft.training.flat import FlatWeights


class Ema:
    """A moving average of parameters, with a warmup: the decay after step t is min(decay, (1 + t) / (10 + t)).

    The warmup (that of the TensorFlow implementation) forgets the untrained start: it allows 0.9 at step 81 and 0.999
    at step 9,000.

    Args:
        weights: float32, on one device; their present values begin the average.
        decay: in (0, 1).

    Attributes:
        averages: of each parameter, in its shape.
    """

    def __init__(self, weights: FlatWeights, decay: float) -> None:
        self.decay = decay
        self._weights = weights.flat
        self._average = weights.flat.clone()
        self.averages = weights.layout.views(self._average)
        self._pull = torch.zeros((), device=weights.flat.device)

    def begin(self, step: int) -> None:
        """Set how far step ``step`` (from 0) pulls the averages."""
        self._pull.fill_(1.0 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as the step leaves them."""
        self._average.lerp_(self._weights, self._pull)

    @contextmanager
    def swapped(self) -> Generator[None]:
        """Put the average into the model, and the very same weights back afterwards."""
        kept = self._weights.clone()
        self._weights.copy_(self._average)
        try:
            yield
        finally:
            self._weights.copy_(kept)

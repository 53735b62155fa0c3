"""Random numbers of a training step: functions of (seed, step, stream), so no generator's state is ever saved."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor


def mix_seed(*parts: object) -> int:
    """Return a seed in [0, 2⁶³) that depends on every part; equal parts give equal seeds on every machine."""
    digest = sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class StepRng:
    """Draws of one step, for the samples of one micro-batch.

    Every draw is made for the whole global batch and this micro-batch's slots are taken from it, so that any number
    of processes and micro-batches sees what one process would.

    Args:
        seed: of the run.
        step: from 0.
        slots: [n] long on ``device``, the places of the micro-batch's samples within the global batch.
        global_batch: samples of a step over all micro-batches and processes.
        device: where the draws are made. Devices of different kinds draw different numbers.
    """

    def __init__(self, seed: int, step: int, slots: Tensor, global_batch: int, device: torch.device) -> None:
        self.seed = seed
        self.step = step
        self.slots = slots
        self.global_batch = global_batch
        self.device = device

    def normal(self, shape: Sequence[int], stream: str = "noise") -> Tensor:
        """Return standard normal draws [n, *shape], float32; the same again for the same stream."""
        drawn = torch.randn(self.global_batch, *shape, generator=self._generator(stream), device=self.device)
        return drawn[self.slots]

    def uniform(self, stream: str) -> Tensor:
        """Return draws [n] from [0, 1), float32; the same again for the same stream."""
        drawn = torch.rand(self.global_batch, generator=self._generator(stream), device=self.device)
        return drawn[self.slots]

    def integers(self, high: int, stream: str) -> Tensor:
        """Return draws [n] from 0 to ``high`` - 1, long; the same again for the same stream."""
        generator = self._generator(stream)
        drawn = torch.randint(high, (self.global_batch,), generator=generator, device=self.device)
        return drawn[self.slots]

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(mix_seed(self.seed, self.step, stream))


class StandingRng(StepRng):
    """Keeps its draws in tensors that stay where they are, and renews them: a recorded step finds them there.

    Args:
        now: makes the draws of the first step.
    """

    def __init__(self, now: StepRng) -> None:
        super().__init__(now.seed, now.step, now.slots, now.global_batch, now.device)
        self._now = now
        self._normal: dict[tuple[tuple[int, ...], str], Tensor] = {}
        self._uniform: dict[str, Tensor] = {}
        self._integers: dict[tuple[int, str], Tensor] = {}

    def renew(self, now: StepRng) -> None:
        """Put the draws of another step in place of all that was asked for so far."""
        self._now = now
        for (shape, stream), tensor in self._normal.items():
            tensor.copy_(now.normal(shape, stream))
        for stream, tensor in self._uniform.items():
            tensor.copy_(now.uniform(stream))
        for (high, stream), tensor in self._integers.items():
            tensor.copy_(now.integers(high, stream))

    def normal(self, shape: Sequence[int], stream: str = "noise") -> Tensor:
        """Return the present step's standard normal draws [n, *shape], float32."""
        key = (tuple(shape), stream)
        if key not in self._normal:
            self._normal[key] = self._now.normal(shape, stream)
        return self._normal[key]

    def uniform(self, stream: str) -> Tensor:
        """Return the present step's draws [n] from [0, 1), float32."""
        if stream not in self._uniform:
            self._uniform[stream] = self._now.uniform(stream)
        return self._uniform[stream]

    def integers(self, high: int, stream: str) -> Tensor:
        """Return the present step's draws [n] from 0 to ``high`` - 1, long."""
        key = (high, stream)
        if key not in self._integers:
            self._integers[key] = self._now.integers(high, stream)
        return self._integers[key]

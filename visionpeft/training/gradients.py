"""Gradients in one flat buffer: summed over micro-batches and processes, divided by the count, clipped, watched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionpeft.training.flat import Layout
from visionpeft.training.task import StepOutput


class GradientBuffer:
    """One float32 buffer [elements + 2]: its slices are the parameters' ``.grad``, the last two Σ loss and Σ count.

    Sums are exchanged, never means, in one all-reduce: any number of processes and micro-batches gives the same step.

    Args:
        parameters: float32, on one device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        layout = Layout(parameters)
        self.flat = torch.zeros(layout.size + 2, device=parameters[0].device)
        self.gradients = self.flat[:-2]
        self.loss_sum = self.flat[-2]
        self.count = self.flat[-1]
        for parameter, place in zip(parameters, layout.views(self.gradients), strict=True):
            parameter.grad = place

    @property
    def nbytes(self) -> int:
        """Bytes that a process gives to the others in a step, and all that it gives."""
        return self.flat.nbytes

    def clear(self) -> None:
        """Begin a step."""
        self.flat.zero_()

    @torch.no_grad()
    def note(self, out: StepOutput) -> None:
        """Take in the loss and the count of a micro-batch whose backward pass has run."""
        self.loss_sum.add_(out.loss_sum.detach())
        self.count.add_(out.count)

    def divide(self) -> None:
        """Turn the sum of the gradients into their mean; where there are no terms, it is a sum of nothing."""
        self.count.add_(self.count == 0)
        self.gradients.div_(self.count)

    def norm(self) -> Tensor:
        """Return the Euclidean norm of all gradients, a scalar on the device."""
        return torch.linalg.vector_norm(self.gradients)

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradients, whose norm is given, down to ``limit``; without a look from the host."""
        self.gradients.mul_((limit / (norm + 1e-12)).clamp(max=1.0))


class Watch:
    """Remembers on the device the first step whose loss or gradient was not a number."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.long, device=device)

    def look(self, step: Tensor, *values: Tensor) -> None:
        """Note the step (from 0, a scalar on the device) if any of the others is not finite and none before was."""
        finite = torch.isfinite(torch.stack(values)).all()
        self._first.copy_(torch.where(~finite & (self._first < 0), step, self._first))

    def first(self) -> int | None:
        """Return the first bad step, from 0, or None; this waits for the device."""
        step = int(self._first.item())
        return None if step < 0 else step

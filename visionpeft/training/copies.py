"""Copies of float32 weights in the type of the arithmetic, made once a step; the gradients that come to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from visionpeft.adapters.layers import Branch
from visionpeft.training.flat import FlatWeights


class Copies:
    """What the branches' products are made with in place of the float32 masters: one cast a step for all of them.

    Gradients come to the copies in their own type and are added to the masters' float32 gradients after each
    micro-batch, so that sums over micro-batches are as exact as ever.

    Args:
        weights: the masters.
        branches: those that can use copies are given them.
        dtype: of the arithmetic.
        told: whether branches are told the type too; where autocast tells it, they are not, so that a part of a model
            that switches it off computes in float32.
    """

    def __init__(self, weights: FlatWeights, branches: Iterable[Branch], dtype: torch.dtype, *, told: bool) -> None:
        self._weights = weights
        self._flat, self._sums = (torch.zeros_like(weights.flat, dtype=dtype) for _ in range(2))
        copies, sums = weights.layout.views(self._flat), weights.layout.views(self._sums)
        at = {id(parameter): number for number, parameter in enumerate(weights.parameters)}
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for branch in branches:
            branch.computes = dtype if told else None
            numbers = {name: at[id(parameter)] for name, parameter in branch.parts.items() if id(parameter) in at}
            if branch.takes_copies and len(numbers) == len(branch.parts):
                branch.copies = {name: copies[number].detach().requires_grad_() for name, number in numbers.items()}
                self._pairs += [(branch.copies[name], sums[number]) for name, number in numbers.items()]

    def __len__(self) -> int:
        """How many parameters have a copy."""
        return len(self._pairs)

    def renew(self) -> None:
        """Take over the masters' present values: the first thing in a step."""
        with torch.no_grad():
            self._flat.copy_(self._weights.flat)

    @torch.no_grad()
    def hand_over(self, gradients: Tensor) -> None:
        """Add what has come to the copies to a buffer of all masters' gradients, and forget it."""
        came = [(place, copy.grad) for copy, place in self._pairs if copy.grad is not None]
        if missing := [place for copy, place in self._pairs if copy.grad is None]:
            torch._foreach_zero_(missing)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
        if came:
            places, found = zip(*came, strict=True)
            torch._foreach_copy_(places, found)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
            gradients.add_(self._sums)
        self.forget()

    def forget(self) -> None:
        """Drop gradients that have come: those of a recording that failed must not be added to."""
        for copy, _ in self._pairs:
            copy.grad = None

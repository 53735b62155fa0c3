"""A linear layer and its LoRA branch in one operation: three products each way, and nothing kept twice.

Under autocast, layers that follow each other convert the same input again and again, scale, add, and keep what the
conversions made for the backward pass. Here the input is converted once, the branch is added by the product that ends
it, and what is kept is the converted input and the narrow middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.coded import Coded


@dataclass(frozen=True)
class FrozenWeight:
    """A frozen weight: what is kept of it, and how it is made of that in a type."""

    stored: tuple[Tensor, ...]
    made: Callable[[tuple[Tensor, ...], torch.dtype], Tensor]


def frozen_weight(layer: nn.Module) -> FrozenWeight | None:
    """Return the weight of a frozen linear layer, plain or in a code; None for any other layer."""
    if isinstance(layer, Coded):
        return FrozenWeight(layer.stored(), layer.made) if isinstance(layer, nn.Linear) else None
    if type(layer) is not nn.Linear or layer.weight.requires_grad:
        return None
    return FrozenWeight((layer.weight,), _turned)


def _turned(stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    return stored[0].to(dtype)


class _LowRankLinear(torch.autograd.Function):
    """``W x + b + scale · B A x`` in one type; gradients for x, A and B, none for W and b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, dtype: torch.dtype,
                made: Callable[[tuple[Tensor, ...], torch.dtype], Tensor], *stored: Tensor) -> Tensor:  # fmt: skip
        """See ``low_rank_linear``."""
        rows, narrow_down, narrow_up = x.reshape(-1, x.shape[-1]).to(dtype), down.to(dtype), up.to(dtype)
        hidden = rows @ narrow_down.T
        out = F.linear(rows, made(stored, dtype), None if bias is None else bias.to(dtype))
        out.addmm_(hidden, narrow_up.T, alpha=scale)
        ctx.save_for_backward(rows, hidden, narrow_down, narrow_up, *stored)
        ctx.scale, ctx.shape, ctx.kind, ctx.kept, ctx.made = scale, x.shape, x.dtype, down.dtype, made
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients of x, A and B."""
        rows, hidden, down, up, *stored = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1]).to(rows.dtype)
        narrow = gradient @ up
        for_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.made(tuple(stored), rows.dtype)
            for_x = (gradient @ weight).addmm_(narrow, down, alpha=ctx.scale).view(ctx.shape).to(ctx.kind)
        for_down = scaled_product(narrow.T, rows, ctx.scale).to(ctx.kept)
        for_up = scaled_product(gradient.T, hidden, ctx.scale).to(ctx.kept)
        return for_x, None, for_down, for_up, None, None, None, *(None for _ in stored)


def scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``scale · a b``; the product itself scales."""
    return a @ b if scale == 1.0 else torch.addmm(a.new_empty(()), a, b, beta=0.0, alpha=scale)


def low_rank_linear(
    x: Tensor,
    weight: Tensor | FrozenWeight,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``W x + b + scale · B A x``, computed in ``dtype``.

    Args:
        x: [..., in].
        weight: W, [out, in], frozen.
        bias: b, [out], frozen, or None.
        down: A, [rank, in], in the type that its gradient is wanted in.
        up: B, [out, rank], in the same.
        scale: of the branch.
        dtype: of the products and the result.
    """
    frozen = weight if isinstance(weight, FrozenWeight) else FrozenWeight((weight,), _turned)
    if torch.compiler.is_compiling():  # the compiler chooses by itself what is kept and joined
        rows = x.to(dtype)
        branch = F.linear(F.linear(rows, down.to(dtype)), up.to(dtype))
        whole = frozen.made(frozen.stored, dtype)
        return F.linear(rows, whole, None if bias is None else bias.to(dtype)) + scale * branch
    return _LowRankLinear.apply(  # pyright: ignore[reportReturnType]
        x, bias, down, up, scale, dtype, frozen.made, *frozen.stored
    )

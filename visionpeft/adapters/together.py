"""Adapted linear layers that read the same input, such as q, k and v of attention: their products joined.

The base's weights lie one after the other in memory, each still its layer's own, and are multiplied with as one matrix;
so are the narrow A's. The gradient of the input is summed up by the products themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.joined import scaled_product
from visionpeft.adapters.layers import AdaptedLayer, LoraTerm
from visionpeft.adapters.slots import plain


def adjoin(layers: Sequence[nn.Module]) -> bool:
    """Put the frozen weights of linear layers one after the other in memory; return whether that could be done.

    Values, names and shapes stay; a later move of the model to elsewhere parts them again.
    """
    bases = [plain(layer) for layer in layers]
    if not all(type(base) is nn.Linear and not base.weight.requires_grad for base in bases):
        return False
    weights: list[Tensor] = [base.get_parameter("weight") for base in bases]
    if len({(weight.shape[1], weight.dtype, weight.device) for weight in weights}) > 1:
        return False
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return True


def outputs(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Return what linear layers say of the same input [..., in], [..., out] each: in joined products where possible."""
    terms = [] if torch.compiler.is_compiling() else [t for layer in layers if (t := _term(layer, x)) is not None]
    if len(terms) < len(layers) or not _joinable(terms):
        return [layer(x) for layer in layers]
    first = terms[0]
    rows = [len(_weight(term)) for term in terms]
    whole = _weight(first).detach().as_strided((sum(rows), x.shape[-1]), (x.shape[-1], 1))
    factors = [*(term.down for term in terms), *(term.up for term in terms)]
    return list(_Together.apply(x, whole, first.scale, first.dtype, *factors))  # pyright: ignore


def _term(layer: nn.Module, x: Tensor) -> LoraTerm | None:
    return layer.term(x) if isinstance(layer, AdaptedLayer) else None


def _joinable(terms: Sequence[LoraTerm]) -> bool:
    if any(type(term.base) is not nn.Linear or term.base.bias is not None for term in terms):
        return False
    alike = len({(term.scale, term.dtype, _weight(term).dtype) for term in terms}) == 1
    return alike and all(_follows(_weight(one), _weight(other)) for one, other in pairwise(terms))


def _weight(term: LoraTerm) -> Tensor:
    return term.frozen.stored[0]


def _follows(one: Tensor, other: Tensor) -> bool:
    """Whether a matrix lies right behind another in memory."""
    same = one.untyped_storage()._cdata == other.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    whole = one.is_contiguous() and other.is_contiguous() and one.shape[1] == other.shape[1]
    return same and whole and one.storage_offset() + one.numel() == other.storage_offset()


class _Together(torch.autograd.Function):
    """``Wᵢ x + scale · Bᵢ Aᵢ x`` for several i; gradients for x, all A and all B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, scale: float, dtype: torch.dtype, *factors: Tensor) -> Any:
        """See ``outputs``; ``whole`` is all W, [Σ out, in]; factors are all A, then all B."""
        count = len(factors) // 2
        downs, ups = factors[:count], [up.to(dtype) for up in factors[count:]]
        rows, down = x.reshape(-1, x.shape[-1]).to(dtype), torch.cat(downs).to(dtype)
        hidden, out = rows @ down.T, F.linear(rows, whole.to(dtype))
        ctx.widths, ctx.ranks = [len(up) for up in ups], [up.shape[1] for up in ups]
        parts = out.split(ctx.widths, dim=1)
        for part, narrow, up in zip(parts, hidden.split(ctx.ranks, dim=1), ups, strict=True):
            part.addmm_(narrow, up.T, alpha=scale)
        ctx.save_for_backward(rows, hidden, whole, down, *ups)
        ctx.scale, ctx.shape, ctx.kind, ctx.kept = scale, x.shape, x.dtype, factors[0].dtype
        return tuple(part.view(*x.shape[:-1], -1) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients of x, of all A and of all B."""
        rows, hidden, whole, down, *ups = ctx.saved_tensors
        given = [gradient.reshape(-1, gradient.shape[-1]).to(rows.dtype) for gradient in gradients]
        narrow = rows.new_empty(len(rows), len(down))
        narrows = narrow.split(ctx.ranks, dim=1)
        for gradient, up, place in zip(given, ups, narrows, strict=True):
            torch.mm(gradient, up, out=place)
        for_x = None
        if ctx.needs_input_grad[0]:
            weights = whole.to(rows.dtype).split(ctx.widths)
            for_x = given[0] @ weights[0]
            for gradient, weight in zip(given[1:], weights[1:], strict=True):
                for_x.addmm_(gradient, weight)
            for_x = for_x.addmm_(narrow, down, alpha=ctx.scale).view(ctx.shape).to(ctx.kind)
        downs = scaled_product(narrow.T, rows, ctx.scale).to(ctx.kept).split(ctx.ranks)
        middles = hidden.split(ctx.ranks, dim=1)
        for_ups = [scaled_product(g.T, m, ctx.scale).to(ctx.kept) for g, m in zip(given, middles, strict=True)]
        return for_x, None, None, None, *downs, *for_ups

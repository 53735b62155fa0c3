"""What the kernels of fused norms and gates compute, as formulas in torch's operations, for machines without them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalised(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernels' function of this name."""
    grouped = _grouped(x, added, groups)
    mean = grouped.mean(2)
    scale = (grouped.var(2, correction=0) + eps).rsqrt()
    given = _given(x, added, weight, bias, mean, scale)
    out = given * torch.sigmoid(given) if silu else given
    return out.contiguous(memory_format=torch.channels_last), mean, scale


def norm_gradient(
    gradient: Tensor, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, *,
    silu: bool,
) -> Tensor:  # fmt: skip
    """As the kernels' function of this name."""
    if silu:
        given = _given(x, added, weight, bias, mean, scale)
        opened = torch.sigmoid(given)
        gradient = gradient * opened * (1 + given * (1 - opened))
    groups = mean.shape[1]
    steep = _grouped(gradient * weight[:, None, None], None, groups)
    even = (_grouped(x, added, groups) - mean[..., None]) * scale[..., None]
    found = steep - steep.mean(2, keepdim=True) - even * (steep * even).mean(2, keepdim=True)
    return (found * scale[..., None]).view(x.shape).contiguous(memory_format=torch.channels_last)


def _grouped(x: Tensor, added: Tensor | None, groups: int) -> Tensor:
    """Pictures [N, groups, elements]."""
    shifted = x if added is None else x + added[:, :, None, None]
    return shifted.reshape(len(x), groups, -1)


def _given(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    even = (_grouped(x, added, mean.shape[1]) - mean[..., None]) * scale[..., None]
    return even.view(x.shape) * weight[:, None, None] + bias[:, None, None]


def gated(both: Tensor) -> Tensor:
    """As the kernels' function of this name."""
    value, gate = both.chunk(2, dim=-1)
    return value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))


def gate_gradient(gradient: Tensor, both: Tensor) -> Tensor:
    """As the kernels' function of this name."""
    value, gate = both.chunk(2, dim=-1)
    below = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    density = torch.exp(-0.5 * gate**2) / math.sqrt(2 * math.pi)
    return torch.cat([gradient * gate * below, gradient * value * (below + gate * density)], dim=-1)

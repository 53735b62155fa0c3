"""What the kernels of fused norms and gates compute, as formulas in torch's operations, for machines without them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalised(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool
) -> tuple[Tensor, ...]:
    """As the kernels' function of this name."""
    shift = torch.zeros_like(x[:, :, 0, 0]) if added is None else added
    grouped = (x + shift[:, :, None, None]).reshape(len(x), groups, -1)
    middle, scales = grouped.mean(2), (grouped.var(2, correction=0) + eps).rsqrt()
    width = x.shape[1] // groups
    slopes = weight * scales.repeat_interleave(width, 1)
    centres = middle.repeat_interleave(width, 1) - shift
    levels = bias - centres * slopes
    given = x * slopes[:, :, None, None] + levels[:, :, None, None]
    out = given * torch.sigmoid(given) if silu else given
    return out.contiguous(memory_format=torch.channels_last), slopes, levels, centres, scales


def norm_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, slopes: Tensor, levels: Tensor, centres: Tensor, scales: Tensor, *,
    silu: bool,
) -> Tensor:  # fmt: skip
    """As the kernels' function of this name."""
    if silu:
        given = x * slopes[:, :, None, None] + levels[:, :, None, None]
        opened = torch.sigmoid(given)
        gradient = gradient * opened * (1 + given * (1 - opened))
    shape = (len(x), scales.shape[1], -1)
    steep = (gradient * weight[:, None, None]).reshape(shape)
    even = (x - centres[:, :, None, None]).reshape(shape) * scales[..., None]
    found = steep - steep.mean(2, keepdim=True) - even * (steep * even).mean(2, keepdim=True)
    return (found * scales[..., None]).view(x.shape).contiguous(memory_format=torch.channels_last)


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

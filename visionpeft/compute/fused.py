"""Norms with their activation, gates and frozen convolutions as one operation each, which keep what they need alone.

Beside each other, a norm and its activation turn pictures into another order in memory and back, launch a dozen
kernels, and keep three copies of the picture for the backward pass; a frozen convolution keeps an input that only the
gradient of its weight would need. Here the picture is kept once. On a GPU the work is done by ``fused_kernels``.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDEST = 128
"""Channels of a norm's group at most."""
_CLOSE = 1e-4
"""How far a small case in float32 may be from torch's own operations, as a share."""


@lru_cache
def fault(device: torch.device) -> str:
    """Return why the kernels do not work on a device, found out by a small case; "" where they do."""
    if device.type != "cuda":
        return f"they are made for CUDA, this is {device.type}"
    try:
        with torch.cuda.device(device):
            apart = _tried(device)
    except (ImportError, RuntimeError, OSError, ValueError, TypeError) as reason:  # no triton, no compiler of C, …
        return str(reason).strip().partition("\n")[0] or type(reason).__name__
    return "" if apart < _CLOSE else f"a small case is off by {apart:.2g} of its size"


def _tried(device: torch.device) -> float:
    """Work of each kind done both ways in float32; the largest difference, as a share."""
    drawn = torch.Generator(device).manual_seed(0)
    x, shift = (torch.randn(shape, device=device, generator=drawn) for shape in ((2, 40, 6, 6), (2, 40)))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.linspace(0.5, 1.5, 80, device=device).view(2, 40)
    found: list[list[Tensor]] = []
    for fused in (True, False):
        normed: Tensor = (_NormSilu.apply if fused else _plain_norm)(x, shift, weight, bias, 4, 1e-5, True)  # pyright: ignore
        gated: Tensor = (_Geglu.apply if fused else _plain_geglu)(normed.flatten(1))  # pyright: ignore
        found.append([gated.detach(), *torch.autograd.grad(gated, x, gated.detach())])
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(*found, strict=True))


def norm_silu(x: Tensor, norm: nn.GroupNorm, added: Tensor | None = None, *, silu: bool = True) -> Tensor:
    """Return ``silu(norm(x + added))``.

    Args:
        x: [N, C, H, W].
        norm: frozen, with weight and bias.
        added: [N, C], or None.
        silu: False leaves the activation out.
    """
    given = (x, added, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return _NormSilu.apply(*given) if _fuses(x) else _plain_norm(*given)  # pyright: ignore[reportReturnType]


def geglu(both: Tensor) -> Tensor:
    """Return ``value · gelu(gate)`` [..., C] of ``[value, gate]`` [..., 2 C] (Shazeer 2020, arXiv:2002.05202)."""
    return _Geglu.apply(both) if _fuses(both) else _plain_geglu(both)  # pyright: ignore[reportReturnType]


def convolved(x: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer makes of a picture; a frozen convolution keeps its weight alone for the backward pass."""
    if type(layer) is not nn.Conv2d or layer.weight.requires_grad or isinstance(layer.padding, str):
        return layer(x)
    if layer.padding_mode != "zeros" or not _fuses(x):
        return layer(x)
    return _FrozenConvolution.apply(  # pyright: ignore[reportReturnType]
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def _fuses(x: Tensor) -> bool:
    """Whether to use the kernels: on a GPU, unless a compiler joins operations by itself."""
    return x.is_cuda and not torch.compiler.is_compiling()


def _plain_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    shifted = x if added is None else x + added[:, :, None, None]
    normed = F.group_norm(shifted, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


def _plain_geglu(both: Tensor) -> Tensor:
    value, gate = both.chunk(2, dim=-1)
    return value * F.gelu(gate)


def _kernels() -> ModuleType:
    from visionpeft.compute import fused_kernels

    return fused_kernels


class _NormSilu(torch.autograd.Function):
    """``silu(norm(x + added))``; gradients for x and added, none for the norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float,
                silu: bool) -> Tensor:  # fmt: skip
        """See ``norm_silu``."""
        x = x.contiguous(memory_format=torch.channels_last)
        if x.is_meta:
            out, *found = x.clone(), *x.new_empty(3, *x.shape[:2], dtype=torch.float32).unbind()
        else:
            out, *found = _kernels().normalised(x, added, weight, bias, groups, eps, silu=silu)
        if any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(x, weight, *found)
        ctx.silu = silu
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients of x and added."""
        x, *rest = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        found = gradient + x if x.is_meta else _kernels().norm_gradient(gradient, x, *rest, silu=ctx.silu)
        for_added = found.sum((2, 3), dtype=torch.float32).to(x.dtype) if ctx.needs_input_grad[1] else None
        return found, for_added, None, None, None, None, None


class _Geglu(torch.autograd.Function):
    """``value · gelu(gate)``; what it was given is kept, and nothing in between."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """See ``geglu``."""
        both = both.contiguous()
        ctx.save_for_backward(both)
        return both[..., ::2].clone() if both.is_meta else _kernels().gated(both)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient of both."""
        (both,) = ctx.saved_tensors
        return both.clone() if both.is_meta else _kernels().gate_gradient(gradients[0].contiguous(), both)


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose weight and bias have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                groups: int) -> Tensor:  # fmt: skip
        """As ``torch.nn.functional.conv2d``."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.given = x.shape, (stride, padding, dilation, groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient of x, for which torch's own operation looks at the shape of x alone."""
        (weight,), (gradient,), (stride, padding, dilation, groups) = ctx.saved_tensors, gradients, ctx.given
        like = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        found, *_ = torch.ops.aten.convolution_backward(
            gradient, like, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )  # fmt: skip
        return found, None, None, None, None, None, None

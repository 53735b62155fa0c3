"""Frozen linear layers whose weights are 8-bit integers with a scale for each output: half the memory of bfloat16.

``W ≈ s ∘ Q`` with ``sᵢ = max|Wᵢ| / 127`` and Q rounded; products are computed in the input's type. Nothing is kept for
the backward pass but Q and s, which are there anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.slots import keeping_float32

_MOST = 127


class Int8Linear(nn.Linear):
    """A frozen linear layer with 8-bit weights.

    Args:
        layer: whose weights it takes over, rounded.

    Attributes:
        weight: [out, in] int8.
        scale: [out] float32, whatever type the model is turned to.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        whole = layer.weight.detach().float()
        scale = whole.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _MOST
        self.weight = nn.Parameter((whole / scale[:, None]).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        bias = layer.state_dict().get("bias")
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone(), requires_grad=False))
        self.training = layer.training

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        scale = keeping_float32(fn)(self.scale)
        super()._apply(fn, recurse)
        self.scale = scale
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Return ``x Wᵀ + b`` in the type that a linear layer would compute in."""
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        out: Tensor = _Product.apply(x, self.weight, self.scale)
        bias = self._parameters["bias"]
        return out if bias is None else out + bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """``x (s ∘ Q)ᵀ``; the product's weight is made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _whole(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return grads[0] @ _whole(weight, scale, grads[0].dtype), None, None


def _whole(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)[:, None]


def quantize_linear(model: nn.Module) -> int:
    """Put 8-bit layers in place of a model's linear layers; return how many.

    A layer that shares its weight with another module, as a text decoder's last one does with the words, stays.
    """
    uses: dict[int, int] = {}
    modules = list(model.named_modules())
    for _, module in modules:
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    own = [(path, layer) for path, layer in modules if type(layer) is nn.Linear and uses[id(layer.weight)] == 1]
    for path, layer in own:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Int8Linear(layer))
    return len(own)

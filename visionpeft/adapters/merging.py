"""Writing adapters into base weights, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft.adapters.algebra import bias_delta, delta
from visionpeft.adapters.layers import AdaptedLayer
from visionpeft.adapters.methods import is_quantized
from visionpeft.errors import AdapterError


@dataclass(frozen=True)
class Merged:
    """A layer's parameters and what they were, on the CPU, by name."""

    layer: nn.Module
    originals: dict[str, Tensor]

    def write(self, values: dict[str, Tensor]) -> None:
        """Write new values in place."""
        with torch.no_grad():
            for name, value in values.items():
                self.layer.get_parameter(name).copy_(value)

    def restore(self) -> None:
        """Write the original values back."""
        self.write(self.originals)


def merge_layer(place: str, adapted: AdaptedLayer) -> tuple[dict[str, Tensor], Merged]:
    """Return ``W + Σ wᵢ ΔWᵢ`` (and the bias where a method changes it) in the base's type, and the originals.

    Raises:
        AdapterError: the layer is quantized: the sum would be rounded away.
    """
    base: Any = adapted.base
    if is_quantized(base):
        raise AdapterError(f"'{place}' is quantized and takes no merge: load the base in 16 or 32 bit and merge there.")
    bias: Tensor | None = base.bias
    total: dict[str, Tensor] = {"weight": base.weight.detach().float()}
    with torch.no_grad():
        for name, weight in adapted.active:
            branch = adapted.branch(name)
            total["weight"] = total["weight"] + weight * delta(branch.spec, branch.whole, base.weight, path=branch.path)
            shift = None if bias is None else bias_delta(branch.spec, branch.parts, bias)
            if bias is not None and shift is not None:
                total["bias"] = total.get("bias", bias.detach().float()) + weight * shift
    values = {name: value.to(base.weight.dtype) for name, value in total.items()}
    originals = {name: base.get_parameter(name).detach().to("cpu", copy=True) for name in values}
    return values, Merged(base, originals)

"""Writing adapters into base weights, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionpeft.adapters.layers import AdaptedLayer
from visionpeft.adapters.methods import is_quantized, refuse_sharded
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
    """Return ``W + Σ wᵢ ΔWᵢ`` (and what else a method changes) by name, in the base's type, and the originals.

    Raises:
        AdapterError: the layer is quantized: the sum would be rounded away; or its weights are shared out.
    """
    base = adapted.base
    refuse_sharded(place, base, "a merge")
    if is_quantized(base):
        raise AdapterError(f"'{place}' is quantized and takes no merge: load the base in 16 or 32 bit and merge there.")
    total: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, weight in adapted.active:
            for parameter, change in adapted.branch(name).changes(base).items():
                before = total.get(parameter, base.get_parameter(parameter).detach().float())
                total[parameter] = before + weight * change
    originals = {name: base.get_parameter(name).detach().to("cpu", copy=True) for name in total}
    values = {name: value.to(originals[name].dtype) for name, value in total.items()}
    return values, Merged(base, originals)


def check_ties(prepared: Mapping[str, tuple[dict[str, Tensor], Merged]]) -> None:
    """Raise AdapterError where a parameter that the base has in two places would become two different ones."""
    written: dict[int, tuple[str, Tensor]] = {}
    for place, (values, merged) in prepared.items():
        for name, value in values.items():
            other, first = written.setdefault(id(merged.layer.get_parameter(name)), (place, value))
            if not torch.equal(first, value):
                raise AdapterError(
                    f"'{place}' and '{other}' have one and the same {name}, and different changes of it: they cannot be"
                    " merged, only run beside the base."
                )

"""What LyCORIS' files hold beside kohya's: whole differences of a module, norms, and the vectors of (IA)³.

LyCORIS' OFT and BOFT turn outputs, this package's OFT turns inputs (as peft's does), which no block of outputs can say:
so OFT is written as the whole difference that it makes, which needs the base. (IA)³ is written as its vector where that
says all, and as a whole difference where the base is given, which more programs read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from visionpeft.adapters import algebra
from visionpeft.adapters.spec import AdapterSpec, FullSpec, Ia3Spec, OftSpec
from visionpeft.errors import AdapterError

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Changes:
    """The writer of modules that are no pair of factors.

    Attributes:
        weights: the base's, by "component.path"; or None.
        biases: the base's likewise.
    """

    weights: Mapping[str, Tensor] | None
    biases: Mapping[str, Tensor] | None

    def module(self, place: str, spec: AdapterSpec, parts: Parts) -> dict[str, Tensor] | None:
        """Return suffix -> tensor of a module; None where its method is not one of these.

        Raises:
            AdapterError: LyCORIS has no place for it, or the base is needed.
        """
        if isinstance(spec, FullSpec):
            return _differences(place, parts)
        if not isinstance(spec, OftSpec | Ia3Spec):
            return None
        if self.weights is not None:
            return self._whole(place, spec, parts)
        vector = parts.get("ia3_l")
        if vector is None or vector.ndim != 2 or not (algebra.scales_input(vector) or has_no_bias(place)):
            raise AdapterError(
                f"'{place}': {spec.method} is written as the difference that it makes of the base's weights: give the"
                " base with base=… (--base), or convert the adapter with adapter.to_lora(rank=…, base=…)"
            )
        return {
            "weight": vector.float().flatten() - 1,
            "on_input": torch.tensor(algebra.scales_input(vector), dtype=torch.uint8),
        }

    def _whole(self, place: str, spec: OftSpec | Ia3Spec, parts: Parts) -> dict[str, Tensor]:
        weights, biases = self.weights or {}, self.biases or {}
        if place not in weights:
            raise AdapterError(f"the base has no module '{place}': the adapter belongs to another base")
        weight = weights[place]
        if weight.is_meta:
            raise AdapterError(f"'{place}': {spec.method} needs the values of the base's weights")
        named = {"diff": algebra.delta(spec, parts, weight)}
        bias = algebra.bias_delta(spec, parts, biases[place]) if place in biases else None
        return named if bias is None else {**named, "diff_b": bias}


def has_no_bias(place: str) -> bool:
    """Whether a module of Stable Diffusion has no bias, so that scaling its outputs is scaling its weight."""
    return re.fullmatch(r"unet\..*\.attn[12]\.to_[qkv]", place) is not None


def _differences(place: str, parts: Parts) -> dict[str, Tensor]:
    """Full tuning of one module; norms go by names of their own."""
    if set(parts) - {"weight.diff", "bias.diff"} or re.search(r"(embedding|embeddings)$", place):
        raise AdapterError(
            f"LyCORIS files hold no change of '{place}' ({', '.join(sorted(parts))}): use format='native', or convert "
            "with adapter.to_lora(rank=…, drop=True)"
        )
    weight, bias = parts.get("weight.diff"), parts.get("bias.diff")
    if weight is not None and weight.ndim == 1:
        return {"w_norm": weight, "b_norm": torch.zeros_like(weight) if bias is None else bias}
    return {suffix: tensor for suffix, tensor in (("diff", weight), ("diff_b", bias)) if tensor is not None}

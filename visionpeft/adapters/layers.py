"""An adapted layer: the untouched base layer and, beside it, one branch for each adapter.

``y = base(x) + Σ wᵢ · δᵢ(x)`` for every method, so any adapters may be active together at any weight. The branches hold
float32 masters whatever the base's type. Without autocast a branch computes in float32 and the sum is cast to the
base's output type; under autocast its matrix products follow autocast, while a ΔW that is formed is formed in float32.
Nothing in the forward pass reads a value back from the device or branches on one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.algebra import delta, ia3_factor, scales_input
from visionpeft.adapters.spec import DropoutSpec, LoraSpec, Spec, scale_of

SLOT = "adapter_"  # a module table has attributes of its own ("keys", "items"); with a prefix every name is free


Move = Callable[[Tensor], Tensor]


def keeping_float32(fn: Move) -> Move:
    """Do to a tensor what `model.to(...)` does, but keep its type: masters stay float32 in a bfloat16 model."""

    def move(tensor: Tensor) -> Tensor:
        probe = fn(tensor.new_empty(0))
        return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

    return move


class Live(Protocol):
    """δ(x) of a method: what a branch adds to the base layer's output."""

    def __call__(self, branch: Branch, x: Tensor, out: Tensor) -> Tensor:
        """Return δ for the input x and the base layer's output, in the output's shape."""
        ...


class Branch(nn.Module):
    """One adapter's parameters at one layer.

    Args:
        spec: the component's spec.
        path: canonical module path, for ranks and alphas of single modules.
        base: the layer it belongs to; not registered as its child.
        live: the method's δ.
        parts: parameters by name, float32.
        start: frozen factors that are subtracted (PiSSA, OLoRA), or nothing.
    """

    def __init__(
        self,
        spec: Spec,
        path: str,
        base: nn.Module,
        live: Live,
        parts: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.spec, self.path, self.live = spec, path, live
        self.scale = scale_of(spec, path)
        self.dropout = spec.dropout if isinstance(spec, DropoutSpec) else 0.0
        self._base = (base,)  # in a tuple, so that it is no child of this module
        self._names = tuple(parts)
        for name, part in parts.items():
            self.register_parameter(_attribute(name), nn.Parameter(part.detach().to(torch.float32).clone()))
        self._starts = tuple(start)
        for name, part in start.items():
            self.register_buffer("start_" + _attribute(name), part.detach().to(torch.float32).clone())

    @property
    def base(self) -> nn.Module:
        """The base layer."""
        return self._base[0]

    @property
    def parts(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: getattr(self, _attribute(name)) for name in self._names}

    @property
    def start(self) -> dict[str, Tensor]:
        """The frozen factors that are subtracted, by name; empty for most."""
        return {name: getattr(self, "start_" + _attribute(name)) for name in self._starts}

    @property
    def whole(self) -> dict[str, Tensor]:
        """The parameters with the frozen factors joined in: plain LoRA of twice the rank; else the parameters."""
        if not self._starts:
            return dict(self.parts)
        parts, start = self.parts, self.start
        return {
            "lora_A.weight": torch.cat([parts["lora_A.weight"], start["lora_A.weight"]]),
            "lora_B.weight": torch.cat([parts["lora_B.weight"], -start["lora_B.weight"]], dim=1),
        }

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Return δ(x), given the base layer's output for x."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.float32)
        return self.live(self, F.dropout(x, self.dropout, self.training and self.dropout > 0), out)

    def _apply(self, fn: Move, recurse: bool = True) -> Branch:
        return super()._apply(keeping_float32(fn), recurse)


class AdaptedLayer(nn.Module):
    """A base layer with the branches of its adapters; `active` is set by the manager, (name, weight) in order."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.branches = nn.ModuleDict()
        self.active: tuple[tuple[str, float], ...] = ()
        self.train(base.training)

    def branch(self, name: str) -> Branch:
        """The branch of an adapter."""
        return self.branches[SLOT + name]  # pyright: ignore[reportReturnType]

    def put(self, name: str, branch: Branch) -> None:
        """Add an adapter's branch."""
        self.branches[SLOT + name] = branch.train(self.training)

    def drop(self, name: str) -> None:
        """Remove an adapter's branch."""
        del self.branches[SLOT + name]

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for callers that look at a layer's type or device."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``base(x) + Σ wᵢ · δᵢ(x)``."""
        out = self.base(x, *args, **kwargs)
        total = out
        for name, weight in self.active:
            part = self.branches[SLOT + name](x, out)
            total = total + (part if weight == 1.0 else weight * part)
        return total.to(out.dtype)


def apply_weight(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Do what the base layer does, with another weight and without bias."""
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, weight, None, base.stride, base.padding, base.dilation, base.groups)  # pyright: ignore[reportArgumentType]
    return F.linear(x, weight)


def lora_live(branch: Branch, x: Tensor, out: Tensor) -> Tensor:
    """``scale · B A x``, through the narrow middle."""
    del out
    parts = branch.whole
    hidden = apply_weight(branch.base, x, parts["lora_A.weight"])
    up = parts["lora_B.weight"]
    return branch.scale * (F.conv2d(hidden, up) if up.ndim == 4 else F.linear(hidden, up))


def dora_live(branch: Branch, x: Tensor, out: Tensor) -> Tensor:
    """``(m/‖V‖ − 1) · (y − b) + m/‖V‖ · scale · B A x`` with V = W + scale · B A and no gradient through ‖V‖ (§4.3)."""
    weight: Tensor = branch.base.weight  # pyright: ignore[reportAssignmentType]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        low = delta(_PLAIN, branch.parts, weight)
        norm = (weight.float() + branch.scale * low).flatten(1).norm(dim=1)
    ratio = _channels(branch.parts["lora_magnitude_vector"].flatten() / norm, out)
    bias: Tensor | None = branch.base.bias  # pyright: ignore[reportAssignmentType]
    plain = out if bias is None else out - _channels(bias, out)
    return (ratio - 1) * plain + ratio * lora_live(branch, x, out)


def dense_live(branch: Branch, x: Tensor, out: Tensor) -> Tensor:
    """``ΔW x`` with ΔW formed in float32, for LoHa, LoKr and OFT."""
    del out
    weight: Tensor = branch.base.weight  # pyright: ignore[reportAssignmentType]
    with torch.autocast(x.device.type, enabled=False):
        change = delta(branch.spec, branch.parts, weight, path=branch.path)
    return apply_weight(branch.base, x, change)


def ia3_live(branch: Branch, x: Tensor, out: Tensor) -> Tensor:
    """``(l − 1) ∘ y``, or ``W ((l − 1) ∘ x)`` where inputs are scaled."""
    vector = branch.parts["ia3_l"]
    if not scales_input(vector):
        return _channels(vector.flatten() - 1, out) * out
    weight: Tensor = branch.base.weight  # pyright: ignore[reportAssignmentType]
    return F.linear(x * (ia3_factor(vector, 2) - 1).to(x.dtype), weight.to(x.dtype))


_PLAIN = LoraSpec(rank=1)  # a scale of 1


def _channels(values: Tensor, out: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1) if out.ndim == 4 else values


def _attribute(name: str) -> str:
    return name.replace(".", "_")

"""An adapted layer: the untouched base layer and, beside it, one branch for each adapter.

``y = base(x) + Σ wᵢ · δᵢ(x)`` for every method, so any adapters may be active together at any weight. The branches hold
float32 masters whatever the base's type. Without autocast a branch computes in float32 and the sum is cast to the
base's output type; under autocast its matrix products follow autocast, while a ΔW that is formed is formed in float32.
In training a branch may be told its products' type, and be given copies of its masters in it; autocast is not needed.
Nothing in the forward pass reads a value back from the device or branches on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from visionpeft.adapters.algebra import DIFF, bias_delta, delta, ia3_factor, scales_input
from visionpeft.adapters.joined import FrozenWeight, frozen_weight, low_rank_linear
from visionpeft.adapters.slots import SLOT, Active, Part, Slot, attribute
from visionpeft.adapters.spec import DropoutSpec, LoraSpec, Spec, scale_of

Convolution = nn.Conv1d | nn.Conv2d
"""The convolutions that can be adapted."""


class Live(Protocol):
    """δ(x) of a method: what a branch adds to the base layer's output."""

    def __call__(self, branch: Branch, x: Tensor, out: Tensor) -> Tensor:
        """Return δ for the input x and the base layer's output, in the output's shape."""
        ...


class AdaptedLayer(Slot):
    """A module with the branches and shifts of its adapters."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self._shifts: Active = ()
        self._adds: Active = ()
        self._hold_still()

    def act(self, active: Active) -> None:
        """Let these parts act, at these weights, and no others."""
        self.active = active
        self._shifts = tuple(pair for pair in active if isinstance(self.branch(pair[0]), Shift))
        self._adds = tuple(pair for pair in active if isinstance(self.branch(pair[0]), Branch))

    def train(self, mode: bool = True) -> AdaptedLayer:
        """As for any module, but a batch norm keeps its running statistics, which are the base's."""
        super().train(mode)
        self._hold_still()
        return self

    def follow(self) -> None:
        """Take over the mode and the device of the module in the slot; a batch norm's own mode says nothing."""
        mode = self.training
        super().follow()
        if is_batch_norm(self.base):
            self.training = mode

    def _hold_still(self) -> None:
        if is_batch_norm(self.base):
            self.base.eval()

    def of_base(self, name: str) -> Any:
        """An attribute of the module in the slot; its parameters as they act, since some models read them directly."""
        return self._shifted().get(name) if self._shifts and name in self.base._parameters else super().of_base(name)

    def term(self, x: Tensor) -> LoraTerm | None:
        """Return what makes up the output for x, where one LoRA branch beside a linear layer is all that acts."""
        if self._shifts or len(self._adds) != 1:
            return None
        name, weight = self._adds[0]
        return lora_term(self.base, self.branches[SLOT + name], weight, x)

    def _shifted(self) -> dict[str, Tensor]:
        """``W + Σ wᵢ Dᵢ`` of every parameter that is shifted, in its own type."""
        total: dict[str, Tensor] = {}
        own = dict(self.base.named_parameters(recurse=False))
        for name, weight in self._shifts:
            for parameter, change in self.branch(name).changes(self.base).items():
                before = total.get(parameter, own[parameter])
                total[parameter] = before + (change if weight == 1.0 else weight * change)
        return {name: value.to(own[name].dtype) for name, value in total.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``base(x) + Σ wᵢ · δᵢ(x)``, the first term with the shifted parameters in place of the base's."""
        if len(args) == 1 and (term := self.term(args[0])) is not None:
            bias = getattr(term.base, "bias", None)
            return low_rank_linear(args[0], term.frozen, bias, term.down, term.up, term.scale, term.dtype)
        if not self._shifts:
            total = out = self.base(*args, **kwargs)
        else:
            total = functional_call(self.base, self._shifted(), args, kwargs, tie_weights=False)
            out = self.base(*args, **kwargs) if self._adds else total
        if not self._adds:
            return total
        for name, weight in self._adds:
            part = self.branches[SLOT + name](args[0], out)
            total = total + (part if weight == 1.0 else weight * part)
        return total.to(out.dtype)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of what it sees."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]


class Branch(Part):
    """One adapter's parameters at one layer.

    Args:
        spec: the component's spec.
        path: canonical module path, for ranks and alphas of single modules.
        base: the layer it belongs to; not registered as its child.
        live: the method's δ.
        parts: parameters by name, float32.
        start: frozen factors that are subtracted (PiSSA, OLoRA), or nothing.

    Attributes:
        computes: in training without autocast, the type of the products; None is float32, as where a part of a model
            switches autocast off.
        copies: in training, what the products are made with in place of the parameters, by their names; their owner
            keeps them up to date, and takes the gradients that come to them.
    """

    kind = AdaptedLayer

    def __init__(
        self,
        spec: Spec,
        path: str,
        base: nn.Module,
        live: Live,
        parts: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
    ) -> None:
        super().__init__(parts)
        self.spec, self.path, self.live = spec, path, live
        self.scale = scale_of(spec, path)
        self.dropout = spec.dropout if isinstance(spec, DropoutSpec) else 0.0
        self.computes: torch.dtype | None = None
        self.copies: Mapping[str, Tensor] = {}
        self._base = (base,)  # in a tuple, so that it is no child of this module
        self._starts = tuple(start)
        for name, part in start.items():
            self.register_buffer("start_" + attribute(name), part.detach().to(torch.float32).clone())

    @property
    def base(self) -> nn.Module:
        """The base layer."""
        return self._base[0]

    def stand_on(self, base: nn.Module) -> None:
        """Belong to another layer from now on, which does the same as the one before."""
        self._base = (base,)

    @property
    def start(self) -> dict[str, Tensor]:
        """The frozen factors that are subtracted, by name; empty for most."""
        return {name: getattr(self, "start_" + attribute(name)) for name in self._starts}

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

    @property
    def factors(self) -> Mapping[str, Tensor]:
        """What the products are made with."""
        return self.copies if self.copies and self.training else self.whole

    @property
    def takes_copies(self) -> bool:
        """Whether its products can be made with copies of the parameters."""
        return self.live is lora_live and not self._starts

    def changes(self, base: nn.Module) -> dict[str, Tensor]:
        """ΔW, and Δb where the method changes the bias, by the parameter's name."""
        weight: Tensor = base.weight  # pyright: ignore[reportAssignmentType]
        bias = getattr(base, "bias", None)
        shift = None if bias is None else bias_delta(self.spec, self.parts, bias)
        change = {"weight": delta(self.spec, self.whole, weight, path=self.path)}
        return change if shift is None else {**change, "bias": shift}

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Return δ(x), given the base layer's output for x."""
        dtype = type_of_products(self, x)
        if dtype is None:
            return self.live(self, self._dropped(x.to(torch.float32)), out)
        with torch.autocast(x.device.type, dtype=dtype):
            return self.live(self, self._dropped(x), out)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training and self.dropout > 0)


class Shift(Part):
    """Full tuning's differences for the parameters that one module owns itself.

    Args:
        parts: "weight.diff" and so on, float32, in their parameter's shape.
        tied: differences that belong to another module and are used here too, as the base ties the parameters.
        follows: where nothing is its own, the place that the tied ones belong to.
    """

    kind = AdaptedLayer

    def __init__(
        self, parts: Mapping[str, Tensor], tied: Mapping[str, nn.Parameter] | None = None, follows: str = ""
    ) -> None:
        super().__init__(parts)
        self.follows = follows
        self._tied = tuple(tied or {})
        for name, parameter in (tied or {}).items():
            self.register_parameter(attribute(name), parameter)

    def changes(self, base: nn.Module) -> dict[str, Tensor]:
        """The differences by the parameter's name."""
        del base
        return {name.removesuffix(DIFF): getattr(self, attribute(name)) for name in (*self._names, *self._tied)}


class Still(Part):
    """Nothing: it keeps a batch norm in a slot, and so its running statistics still."""

    kind = AdaptedLayer

    def __init__(self) -> None:
        super().__init__({})


def type_of_products(branch: Branch, x: Tensor) -> torch.dtype | None:
    """Return what a branch's products are computed in: as autocast says, else as the branch is told in training."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return branch.computes if branch.training else None


class LoraTerm(NamedTuple):
    """What a frozen linear layer and its one LoRA branch multiply an input with: ``W x + b + scale · B A x``."""

    base: nn.Module
    frozen: FrozenWeight
    down: Tensor
    up: Tensor
    scale: float
    dtype: torch.dtype


def lora_term(base: nn.Module, branch: nn.Module, weight: float, x: Tensor) -> LoraTerm | None:
    """Return the products that make up the output for x, where they are of that kind and have a type; else None."""
    frozen = frozen_weight(base)
    if frozen is None or not isinstance(branch, Branch):
        return None
    if branch.live is not lora_live or (branch.training and branch.dropout > 0) or not x.is_floating_point():
        return None
    dtype = type_of_products(branch, x)
    if dtype is None:
        return None
    parts = branch.factors
    return LoraTerm(base, frozen, parts["lora_A.weight"], parts["lora_B.weight"], weight * branch.scale, dtype)


def apply_weight(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Do what the base layer does, with another weight and without bias."""
    if isinstance(base, Convolution):
        convolve: Any = F.conv2d if isinstance(base, nn.Conv2d) else F.conv1d
        return convolve(x, weight, None, base.stride, base.padding, base.dilation, base.groups)
    return F.linear(x, weight)


_BY_DIMENSIONS: dict[int, Any] = {2: F.linear, 3: F.conv1d, 4: F.conv2d}


def lora_live(branch: Branch, x: Tensor, out: Tensor) -> Tensor:
    """``scale · B A x``, through the narrow middle."""
    del out
    parts = branch.factors if torch.is_autocast_enabled(x.device.type) else branch.whole
    hidden = apply_weight(branch.base, x, parts["lora_A.weight"])
    up = parts["lora_B.weight"]
    return branch.scale * _BY_DIMENSIONS[up.ndim](hidden, up)


def dora_live(branch: Branch, x: Tensor, out: Tensor) -> Tensor:
    """``(m/‖V‖ − 1) · (y − b) + m/‖V‖ · scale · B A x`` with V = W + scale · B A and no gradient through ‖V‖ (§4.3)."""
    weight: Tensor = branch.base.weight  # pyright: ignore[reportAssignmentType]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        low = delta(_PLAIN, branch.parts, weight)
        norm = (weight.float() + branch.scale * low).flatten(1).norm(dim=1)
    ratio = _channels(branch.parts["lora_magnitude_vector"].flatten() / norm, weight)
    bias: Tensor | None = branch.base.bias  # pyright: ignore[reportAssignmentType]
    plain = out if bias is None else out - _channels(bias, weight)
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
    weight: Tensor = branch.base.weight  # pyright: ignore[reportAssignmentType]
    if not scales_input(vector):
        return _channels(vector.flatten() - 1, weight) * out
    return F.linear(x * (ia3_factor(vector, 2) - 1).to(x.dtype), weight.to(x.dtype))


_PLAIN = LoraSpec(rank=1)  # a scale of 1


def _channels(values: Tensor, weight: Tensor) -> Tensor:
    """Values by output, in the shape in which they meet the output of a layer with this weight."""
    return values.reshape(-1, *[1] * (weight.ndim - 2))

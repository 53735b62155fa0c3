"""The table of methods: one row each. peft makes the parameters, their names, shapes and first values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from visionpeft.adapters.layers import Branch, Convolution, Live, dense_live, dora_live, ia3_live, lora_live
from visionpeft.adapters.spec import (
    DoraSpec,
    FullSpec,
    Ia3Spec,
    LohaSpec,
    LokrSpec,
    LoraSpec,
    OftSpec,
    ProbeSpec,
    PromptSpec,
    RankSpec,
    RsLoraSpec,
    Spec,
    VptSpec,
    rank_of,
    scale_of,
)
from visionpeft.errors import AdapterError

_SLOT = "vp"  # the name that peft knows the adapter by while it makes the parameters
_LAYER = "layer"


@dataclass(frozen=True)
class Method:
    """What the program must know of a method.

    Attributes:
        name: as in a spec's `method`.
        spec: its spec class.
        config: (spec, rank, layer) -> peft's configuration for one layer; None for methods that peft does not have.
        live: what a branch adds to its layer's output; None for methods that add nothing to single layers.
        parameters: the names that its tensors may have.
        where: it acts on linear layers and convolutions, on all modules with parameters, on tokens, on those
            that a decoder of text reads, or nowhere.
        starts_as_base: a new adapter changes no output yet.
        low_rank: ΔW has exact low-rank factors without the base: blends and becomes LoRA as it is.
        needs_base: ΔW is a function of the base weight; a quantized base is refused.
        scales_bias: the bias changes too, so ΔW alone does not tell everything; so it is with all of full tuning.
    """

    name: str
    spec: type[Spec]
    config: Callable[[Any, int, nn.Module], PeftConfig] | None
    live: Live | None
    parameters: tuple[str, ...]
    where: Literal["layers", "modules", "tokens", "decoder", "nowhere"] = "layers"
    starts_as_base: bool = True
    low_rank: bool = True
    needs_base: bool = False
    scales_bias: bool = False


def _lora(spec: LoraSpec | RsLoraSpec | DoraSpec, rank: int, layer: nn.Module) -> PeftConfig:
    del layer
    init = getattr(spec, "init", "default")
    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules=[_LAYER], use_dora=isinstance(spec, DoraSpec),
        init_lora_weights="gaussian" if init == "gaussian" else True,
    )  # fmt: skip


def _loha(spec: LohaSpec, rank: int, layer: nn.Module) -> PeftConfig:
    del spec, layer
    return LoHaConfig(r=rank, alpha=rank, target_modules=[_LAYER])


def _lokr(spec: LokrSpec, rank: int, layer: nn.Module) -> PeftConfig:
    del layer
    return LoKrConfig(
        r=rank, alpha=rank, target_modules=[_LAYER], decompose_both=spec.decompose_both, decompose_factor=spec.factor
    )


def _oft(spec: OftSpec, rank: int, layer: nn.Module) -> PeftConfig:
    del rank
    width = weight_of(layer)[0].numel()
    sides = [side for side in range(2, width + 1) if width % side == 0]
    side = min(sides, key=lambda side: abs(side - spec.block_size))
    return OFTConfig(r=0, oft_block_size=side, target_modules=[_LAYER])


def _ia3(spec: Ia3Spec, rank: int, layer: nn.Module) -> PeftConfig:
    del spec, rank, layer
    return IA3Config(target_modules=[_LAYER], feedforward_modules=[])


_AB = ("lora_A.weight", "lora_B.weight")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_KRON = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("lora", LoraSpec, _lora, lora_live, _AB),
        Method("rslora", RsLoraSpec, _lora, lora_live, _AB),
        Method("dora", DoraSpec, _lora, dora_live, (*_AB, "lora_magnitude_vector"), low_rank=False, needs_base=True),
        Method("loha", LohaSpec, _loha, dense_live, _HADA),
        Method("lokr", LokrSpec, _lokr, dense_live, _KRON),
        Method("oft", OftSpec, _oft, dense_live, ("oft_R.weight",), low_rank=False, needs_base=True),
        Method("ia3", Ia3Spec, _ia3, ia3_live, ("ia3_l",), low_rank=False, needs_base=True, scales_bias=True),
        Method("full", FullSpec, None, None, ("weight.diff", "bias.diff"), "modules", low_rank=False, scales_bias=True),
        Method("probe", ProbeSpec, None, None, (), "nowhere", low_rank=False),
        Method("vpt", VptSpec, None, None, ("prompts",), "tokens", starts_as_base=False, low_rank=False),
        Method("prompt", PromptSpec, None, None, ("prompts",), "decoder", starts_as_base=False, low_rank=False),
    )
}


def method_of(spec: Spec) -> Method:
    """The row of a spec's method."""
    return METHODS[spec.method]  # pyright: ignore[reportAttributeAccessIssue]


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight."""
    return cast("Tensor", layer.weight)


def is_sharded(layer: nn.Module) -> bool:
    """Whether this process has only a part of a parameter of a module's own."""
    return any(hasattr(parameter, "device_mesh") for parameter in layer.parameters(recurse=False))


def refuse_sharded(place: str, layer: nn.Module, what: str) -> None:
    """Raise AdapterError where a module's weights are shared out over processes, and ``what`` needs them whole."""
    if is_sharded(layer):
        raise AdapterError(
            f"'{place}': {what} needs the weights whole, and they are shared out over processes: take a base that is"
            " not, with train.shard: off, or do it before it is."
        )


def is_quantized(layer: nn.Module) -> bool:
    """Whether a parameter of a module's own is anything but plain floating-point numbers."""
    own = [parameter.data for parameter in layer.parameters(recurse=False)]
    return not is_sharded(layer) and any(
        type(data) is not Tensor or not data.is_floating_point() or data.element_size() < 2 for data in own
    )


def new_branch(spec: Spec, path: str, layer: nn.Module, *, feedforward: bool = False) -> Branch:
    """Return a fresh branch for a layer: ΔW is 0 to rounding, the base layer is not touched.

    Args:
        spec: the component's spec.
        path: canonical module path.
        layer: an `nn.Linear` or `nn.Conv2d`.
        feedforward: scale inputs instead of outputs ((IA)³).

    Raises:
        AdapterError: the method cannot adapt this layer; the message says why.
    """
    method = method_of(spec)
    _check(method, path, layer)
    parts = _first_values(method, spec, path, layer)
    start: dict[str, Tensor] = {}
    if method.name == "dora":
        parts["lora_magnitude_vector"] = _norms(layer).reshape(parts["lora_magnitude_vector"].shape)
    if feedforward:
        parts["ia3_l"] = torch.ones(1, _inputs(path, layer))
    if getattr(spec, "init", "default") in PRINCIPAL:
        parts = start = _principal(cast("LoraSpec", spec), path, layer)
    return _branch(method, spec, path, layer, parts, start)


def branch_of(spec: Spec, path: str, layer: nn.Module, parts: dict[str, Tensor]) -> Branch:
    """Return a branch with given values.

    Raises:
        AdapterError: the method cannot adapt this layer.
    """
    method = method_of(spec)
    _check(method, path, layer)
    return _branch(method, spec, path, layer, parts, {})


def _branch(
    method: Method, spec: Spec, path: str, layer: nn.Module, parts: dict[str, Tensor], start: dict[str, Tensor]
) -> Branch:
    branch = Branch(spec, path, layer, cast("Live", method.live), parts, start)
    return branch.to(weight_of(layer).device)


def _check(method: Method, path: str, layer: nn.Module) -> None:
    if isinstance(layer, Convolution) and (layer.groups != 1 or layer.padding_mode != "zeros"):
        raise AdapterError(
            f"'{path}': grouped convolutions and paddings other than zeros cannot be adapted; leave it out."
        )
    if method.needs_base:
        refuse_sharded(path, layer, f"the method '{method.name}'")
    if method.needs_base and is_quantized(layer):
        raise AdapterError(f"'{path}': the method '{method.name}' needs the weights, but they are quantized; use lora.")
    if method.name == "dora" and (zero := int((_norms(layer) == 0).sum())):
        raise AdapterError(
            f"'{path}': DoRA divides by the length of each row of the weight, and {zero} of {len(weight_of(layer))} are"
            " all zero there; leave this layer out, or use lora for it."
        )


def _first_values(method: Method, spec: Spec, path: str, layer: nn.Module) -> dict[str, Tensor]:
    holder = nn.Module()
    holder.add_module(_LAYER, _stand_in(spec, layer))
    rank = rank_of(spec, path) if isinstance(spec, RankSpec) else 1
    config = cast("Callable[[Spec, int, nn.Module], PeftConfig]", method.config)(spec, rank, layer)
    try:
        inject_adapter_in_model(config, holder, _SLOT)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise AdapterError(f"'{path}': {method.name} cannot be made there: {error}") from error
    found = holder.get_submodule(_LAYER).named_parameters()
    parts = {_name(name): part.detach() for name, part in found if not name.startswith("base_layer.")}
    if isinstance(layer, nn.Conv1d):
        return {name: part.squeeze(-1) if part.ndim == 4 else part for name, part in parts.items()}
    return parts


def _name(name: str) -> str:
    plain = name.replace(f".{_SLOT}", "")
    return "lora_magnitude_vector" if plain == "lora_magnitude_vector.weight" else plain


def _stand_in(spec: Spec, layer: nn.Module) -> nn.Module:
    # on the CPU and without values: the same first values on any device, and no copy of a large weight
    if isinstance(layer, nn.Conv2d):
        return nn.utils.skip_init(
            nn.Conv2d, layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False
        )
    if isinstance(layer, nn.Conv1d):  # not all of peft's methods take one, and its OFT takes kernels to be square
        size = layer.kernel_size[0]
        if isinstance(spec, OftSpec):
            return nn.utils.skip_init(nn.Linear, layer.in_channels * size, layer.out_channels, bias=False)
        return nn.utils.skip_init(nn.Conv2d, layer.in_channels, layer.out_channels, (size, 1), bias=False)
    linear = cast("nn.Linear", layer)
    return nn.utils.skip_init(nn.Linear, linear.in_features, linear.out_features, bias=False)


def _norms(layer: nn.Module) -> Tensor:
    return weight_of(layer).detach().float().flatten(1).norm(dim=1)


def _inputs(path: str, layer: nn.Module) -> int:
    if not isinstance(layer, nn.Linear):
        raise AdapterError(f"'{path}': (IA)³ scales the inputs of linear layers only; take it out of 'feedforward'.")
    return layer.in_features


def _svd(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    u, values, vt = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * vt[:rank], u[:, :rank] * root


def _qr(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    del scale
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


PRINCIPAL: dict[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {"pissa": _svd, "olora": _qr}


def _principal(spec: LoraSpec | RsLoraSpec, path: str, layer: nn.Module) -> dict[str, Tensor]:
    """A [r, in…] and B [out, r…] whose product is the weight's principal (or first orthonormal) part."""
    refuse_sharded(path, layer, f"init '{spec.init}'")
    if is_quantized(layer):
        raise AdapterError(
            f"'{path}': init '{spec.init}' needs the weights, but they are quantized; use init 'default'."
        )
    weight, rank, scale = weight_of(layer).detach(), rank_of(spec, path), scale_of(spec, path)
    if rank > min(weight.flatten(1).shape):
        most = min(weight.flatten(1).shape)
        raise AdapterError(f"'{path}': init '{spec.init}' takes a rank of at most {most} here, not {rank}.")
    down, up = PRINCIPAL[spec.init](weight.float().cpu().flatten(1), rank, scale)
    ones = (1,) * (weight.ndim - 2)
    return {"lora_A.weight": down.reshape(rank, *weight.shape[1:]), "lora_B.weight": up.reshape(-1, rank, *ones)}

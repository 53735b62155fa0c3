"""From any method to plain LoRA, which every program reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from visionpeft.adapters.algebra import (
    DIFF,
    as_lora,
    bias_delta,
    compress,
    delta,
    flat_shape,
    low_rank,
    modules,
    thin,
)
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec, FlatSpec, FullSpec, LoraSpec, PlacedSpec, RsLoraSpec
from visionpeft.errors import AdapterError


def to_lora(
    adapter: Adapter,
    rank: int | None = None,
    energy: float | None = None,
    base: Mapping[str, Tensor] | None = None,
    *,
    drop: bool = False,
) -> Adapter:
    """Return an adapter as plain LoRA of scale 1; heads and trained words stay as they are.

    LoRA, rsLoRA, LoHa and LoKr convert exactly when neither rank nor energy is given; else, and for DoRA, OFT, (IA)³
    and full tuning always, each ΔW is cut to its best approximation in the Frobenius norm (Eckart-Young).

    Args:
        adapter: of any method.
        rank: singular values to keep at most.
        energy: keep the fewest whose squares sum to this share of all, in (0, 1].
        base: base weights by "component.path", for DoRA, OFT and (IA)³; `AdapterManager.base_weights` gives them.
        drop: leave out what LoRA cannot hold of full tuning: biases, norms, embeddings, class tokens.

    Raises:
        AdapterError: the base is needed and not given, there is no ΔW at all, or something that LoRA cannot hold.
    """
    if nothing := [spec.method for spec in adapter.specs.values() if isinstance(spec, PlacedSpec)]:
        raise AdapterError(f"The method '{nothing[0]}' changes no weights, so there is no ΔW that LoRA could hold.")
    if not drop:
        _check_nothing_is_lost(adapter)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, dict[str, int]] = {component: {} for component in adapter.specs}
    for place, parts in modules(adapter).items():
        component, _, path = place.partition(".")
        if not _is_layer(adapter.specs[component], path, parts):
            continue
        new = _module(adapter.specs[component], place, path, parts, rank, energy, base or {})
        ranks[component][path] = len(new["lora_A.weight"])
        tensors |= {f"{place}.{name}": tensor.contiguous() for name, tensor in new.items()}
    specs = {component: lora_spec(spec, ranks[component]) for component, spec in adapter.specs.items()}
    return replace(adapter, specs=specs, tensors=tensors)


def lora_spec(spec: AdapterSpec, ranks: Mapping[str, int]) -> LoraSpec:
    """A LoRA spec of scale 1 with these ranks by path, for the same targets; after full tuning, for these paths."""
    most = max(ranks.values(), default=1)
    pattern = {path: rank for path, rank in sorted(ranks.items()) if rank != most}
    targets = tuple(ranks) if isinstance(spec, FullSpec) else spec.targets
    return LoraSpec(targets=targets, rank=most, rank_pattern=pattern)


def _is_layer(spec: AdapterSpec, path: str, parts: Mapping[str, Tensor]) -> bool:
    return not isinstance(spec, FullSpec) or ("weight.diff" in parts and path not in spec.others)


def _check_nothing_is_lost(adapter: Adapter) -> None:
    lost: list[str] = []
    for place, parts in modules(adapter).items():
        component, _, path = place.partition(".")
        spec = adapter.specs[component]
        if isinstance(spec, FullSpec):
            kept = {"weight.diff"} if _is_layer(spec, path, parts) else set[str]()
            lost += [f"{place}.{name}".removesuffix(DIFF) for name in parts if name not in kept and parts[name].any()]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        named = ", ".join(f"'{name}'" for name in lost[:3])
        raise AdapterError(
            f"LoRA holds changes of linear layers and convolutions alone; full tuning changed {named}{more} too: give"
            " drop=True to leave that out, or keep the adapter as it is."
        )


def _module(
    spec: AdapterSpec,
    place: str,
    path: str,
    parts: Mapping[str, Tensor],
    rank: int | None,
    energy: float | None,
    base: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    if not is_low_rank(spec) and rank is None and energy is None:
        needed = "" if isinstance(spec, FullSpec) else "base=… and "
        raise AdapterError(f"The method '{spec.method}' has no exact low-rank form: give {needed}rank=… or energy=….")
    down, up, shape = layer_factors(spec, place, path, parts, base)
    if rank is not None or energy is not None:
        down, up = compress(down, up, rank, energy)
    return as_lora(down, up, shape)


def is_low_rank(spec: AdapterSpec) -> bool:
    """Whether ΔW has exact factors that need no base: LoRA, rsLoRA, LoHa, LoKr."""
    return isinstance(spec, LoraSpec | RsLoraSpec | FlatSpec)


def layer_factors(
    spec: AdapterSpec, place: str, path: str, parts: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return exact factors (down [r, n], up [m, r]) of one layer's ΔW, and its weight's shape.

    What has no low rank has factors as wide as the smaller side, one of them the identity.

    Args:
        spec: the component's spec.
        place: "component.path".
        path: the canonical path alone.
        parts: the layer's parameters by name.
        base: base weights by "component.path", biases by "component.path.bias"; DoRA, OFT and (IA)³ need them.

    Raises:
        AdapterError: the base is needed and not given, or the bias changes too.
    """
    if not is_low_rank(spec):
        return _dense(spec, place, path, parts, base)
    down, up = (factor.flatten(1) for factor in low_rank(spec, parts, path=path))
    shape = _shape(spec, path, parts, down, up)
    if len(down) > min(up.shape[0], down.shape[1]):  # Khatri-Rao factors may be wider than the weight itself
        down, up = thin(up @ down)
    return down, up, shape


def _shape(spec: AdapterSpec, path: str, parts: Mapping[str, Tensor], down: Tensor, up: Tensor) -> tuple[int, ...]:
    if isinstance(spec, FlatSpec):
        return flat_shape(spec, path, up.new_empty(up.shape[0], down.shape[1], device="meta"))
    return (up.shape[0], *parts["lora_A.weight"].shape[1:])


def _dense(
    spec: AdapterSpec, place: str, path: str, parts: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    weight, bias = base.get(place), base.get(f"{place}.bias")
    if isinstance(spec, FullSpec):
        weight, bias = parts["weight.diff"], None
    if weight is None:
        missing = f" The base that is given has no weight at '{place}'." if base else ""
        raise AdapterError(
            f"The method '{spec.method}' has no exact low-rank form: give base=… and rank=… or energy=…"
            f" (--base, --rank, --energy).{missing}"
        )
    if bias is not None and bias_delta(spec, parts, bias) is not None:
        raise AdapterError(f"'{place}': '{spec.method}' scales the bias too, which LoRA cannot hold; merge it instead.")
    down, up = thin(delta(spec, parts, weight, path=path).flatten(1))
    return down, up, tuple(weight.shape)

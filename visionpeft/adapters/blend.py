"""Several adapters made one, without a model: exact sums of ΔW, never of factors apart, as (ΣA)(ΣB) is not ΣAB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionpeft.adapters.algebra import as_lora, compress, low_rank, modules
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.convert import to_lora
from visionpeft.adapters.spec import AdapterSpec, LoraSpec, ProbeSpec
from visionpeft.adapters.sums import full_components, heads_of, summed, without
from visionpeft.errors import AdapterError, did_you_mean

Factors = tuple[Tensor, Tensor]
Parts = list[tuple[float, Factors]]
Blender = Callable[..., Factors]
BLENDS: dict[str, Blender] = {}


def blending(name: str) -> Callable[[Blender], Blender]:
    """Enter a blend in the table: from [(weight, (down [r, n], up [m, r]))] of one layer it makes factors.

    Every adapter is among them, with factors of rank 0 where it leaves the layer alone.
    """

    def enter(blender: Blender) -> Blender:
        BLENDS[name] = blender
        return blender

    return enter


@blending("cat")
def concatenated(parts: Parts) -> Factors:
    """``Σ wᵢ ΔWᵢ`` exactly, by concatenating factors; ranks add up."""
    downs = [down for _, (down, _) in parts]
    ups = [weight * up for weight, (_, up) in parts]
    return torch.cat(downs), torch.cat(ups, dim=1)


@blending("linear")
def averaged(parts: Parts) -> Factors:
    """The weighted mean ``Σ wᵢ ΔWᵢ / Σ wᵢ`` exactly; ranks add up."""
    total = sum(weight for weight, _ in parts)
    if total == 0:
        raise AdapterError("The weights of a 'linear' blend sum to 0; use 'cat' for a difference.")
    return concatenated([(weight / total, factors) for weight, factors in parts])


@blending("svd")
def truncated(parts: Parts, rank: int | None = None, energy: float | None = None) -> Factors:
    """The best approximation of ``Σ wᵢ ΔWᵢ`` of a rank (the largest of the parts', if none is given), or by energy."""
    if rank is None and energy is None:
        rank = max(len(down) for _, (down, _) in parts)
    return compress(*concatenated(parts), rank, energy)


def blend(
    adapters: Mapping[str, tuple[Adapter, float]],
    method: str = "cat",
    rank: int | None = None,
    seed: int = 0,
    **params: Any,
) -> Adapter:
    """Return one adapter of several, as plain LoRA of scale 1, in float32, layer by layer.

    The blend of one adapter at weight 1 is that adapter. Full tuning blends with full tuning, by adding differences.
    Equal linear heads with the same labels become their mean by weight.

    Args:
        adapters: name -> (adapter, weight).
        method: a name in `BLENDS`: "cat", "linear", "svd".
        rank: of the result; "cat" and "linear" are exact without and cut to it with one.
        seed: for blends that draw random numbers.
        params: what the blend itself takes ("energy" for "svd").

    Raises:
        AdapterError: none given, an unknown blend or parameter, adapters of different bases, one word in two of them,
            different heads, or a method that is not low-rank (convert it first with `to_lora(rank=…, base=…)`).
    """
    del seed  # for blends to come
    if method not in BLENDS:
        raise AdapterError(
            f"No blend is named '{method}'; there are {', '.join(BLENDS)}.{did_you_mean(method, BLENDS)}"
        )
    if not adapters:
        raise AdapterError("Nothing to blend; give at least one adapter.")
    _check_bases(adapters)
    (first, weight), *more = adapters.values()
    if not more and weight == 1 and rank is None and not params:
        return first
    _check_options(method, params)
    options = params | ({"rank": rank} if method == "svd" and rank is not None else {})
    full = full_components(adapters)
    if full and rank is not None:
        raise AdapterError("Full tuning has no rank to cut to: blend without a rank, then use to_lora(rank=…).")
    rest = without(adapters, full)
    tensors, ranks = _blended(rest, BLENDS[method], options)
    specs: dict[str, AdapterSpec] = {part: _spec(part, ranks, rest) for part in _components(rest)}
    for part in full:
        specs[part], differences = summed(adapters, part, method)
        tensors |= differences
    heads, headed = heads_of(adapters)
    result = Adapter(specs, tensors, heads, _metadata(adapters, headed))
    return to_lora(result, rank) if rank is not None and method != "svd" else result


def _blended(
    adapters: Mapping[str, tuple[Adapter, float]], blender: Blender, options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    found = {name: _factors(name, adapter) for name, (adapter, _) in adapters.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layers in found.items():
        for place, (_, shape) in layers.items():
            if shapes.setdefault(place, shape) != shape:
                raise AdapterError(f"'{place}' has shape {shape} in '{name}' and {shapes[place]} in another adapter.")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for place, shape in sorted(shapes.items()):
        nothing = torch.zeros(0, prod(shape[1:])), torch.zeros(shape[0], 0)
        parts = [(weight, found[name].get(place, (nothing,))[0]) for name, (_, weight) in adapters.items()]
        down, up = blender(parts, **options)
        ranks[place] = len(down)
        named = as_lora(down.float(), up.float(), shape)
        tensors |= {f"{place}.{key}": tensor.contiguous() for key, tensor in named.items()}
    return tensors, ranks


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    known = list(signature(BLENDS[method]).parameters)[1:]
    for name in options:
        if name not in known:
            takes = ", ".join(known) if known else "no parameters"
            raise AdapterError(f"The blend '{method}' takes {takes}, not '{name}'.{did_you_mean(name, known)}")


def _factors(name: str, adapter: Adapter) -> dict[str, tuple[Factors, tuple[int, ...]]]:
    odd = [spec.method for spec in adapter.specs.values() if spec.method not in ("lora", "rslora", "probe")]
    if odd:
        try:
            adapter = to_lora(adapter)
        except AdapterError as error:
            raise AdapterError(f"Adapter '{name}' of method '{odd[0]}' cannot be blended as it is: {error}") from None
    found: dict[str, tuple[Factors, tuple[int, ...]]] = {}
    for place, parts in modules(adapter).items():
        component, _, path = place.partition(".")
        down, up = low_rank(adapter.specs[component], parts, path=path)
        found[place] = (down.flatten(1), up.flatten(1)), (up.shape[0], *down.shape[1:])
    return found


def _components(adapters: Mapping[str, tuple[Adapter, float]]) -> list[str]:
    return list(dict.fromkeys(component for adapter, _ in adapters.values() for component in adapter.specs))


def _spec(
    component: str, ranks: Mapping[str, int], adapters: Mapping[str, tuple[Adapter, float]]
) -> LoraSpec | ProbeSpec:
    own = {place.partition(".")[2]: rank for place, rank in ranks.items() if place.partition(".")[0] == component}
    specs: list[AdapterSpec] = [
        adapter.specs[component] for adapter, _ in adapters.values() if component in adapter.specs
    ]
    specs = [spec for spec in specs if not isinstance(spec, ProbeSpec)]
    if not specs:
        return ProbeSpec()
    same = all(spec.targets == specs[0].targets for spec in specs)
    most = max(own.values(), default=1)
    return LoraSpec(
        targets=specs[0].targets if same else tuple(own),
        rank=most,
        rank_pattern={path: rank for path, rank in own.items() if rank != most},
    )


def _check_bases(adapters: Mapping[str, tuple[Adapter, float]]) -> None:
    for key, what in (("family", "families"), ("base_hash", "bases")):
        there = {name: str(getattr(adapter.metadata, key)) for name, (adapter, _) in adapters.items()}
        known = {name: value for name, value in there.items() if value}
        if len(set(known.values())) > 1:
            told = ", ".join(f"'{name}': {value[:12]}" for name, value in known.items())
            raise AdapterError(f"Adapters of different {what} cannot be blended ({told}).")


def _metadata(adapters: Mapping[str, tuple[Adapter, float]], headed: Adapter | None) -> AdapterMetadata:
    first = next(iter(adapters.values()))[0].metadata
    words = sorted({word for adapter, _ in adapters.values() for word in adapter.metadata.trigger_words})
    return AdapterMetadata(
        family=next((a.metadata.family for a, _ in adapters.values() if a.metadata.family), ""),
        base=first.base,
        base_hash=next((a.metadata.base_hash for a, _ in adapters.values() if a.metadata.base_hash), ""),
        trigger_words=tuple(words),
        heads=dict(headed.metadata.heads) if headed else {},
        head_modules=dict(headed.metadata.head_modules) if headed else {},
        extra={"blend": ", ".join(f"{name}={weight:g}" for name, (_, weight) in adapters.items())},
    )

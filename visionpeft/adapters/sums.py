"""What a blend adds up beside low-rank ΔW: heads, trained words, and the differences of full tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from visionpeft.adapters.algebra import modules, split_name
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import FullSpec, Targets
from visionpeft.errors import AdapterError

Weighted = Mapping[str, tuple[Adapter, Mapping[str, float]]]
"""Name -> (adapter, its weight at each place: layers, and heads)."""


def full_components(adapters: Weighted) -> list[str]:
    """The components that adapters tune fully.

    Raises:
        AdapterError: some do and others change the same component in another way.
    """
    found: dict[str, str] = {}
    for name, (adapter, _) in adapters.items():
        found |= {part: name for part, spec in adapter.specs.items() if isinstance(spec, FullSpec)}
    for name, (adapter, _) in adapters.items():
        for part, spec in adapter.specs.items():
            if part in found and not isinstance(spec, FullSpec):
                raise AdapterError(
                    f"'{found[part]}' tunes '{part}' fully and '{name}' with the method '{spec.method}': blend full"
                    f" with full, or make '{found[part]}' LoRA first, with to_lora(rank=… or energy=…, drop=True)."
                )
    return list(found)


def without(adapters: Weighted, components: Iterable[str]) -> dict[str, tuple[Adapter, Mapping[str, float]]]:
    """The adapters without some components."""
    out = set(components)
    return {name: (_without(adapter, out), weight) for name, (adapter, weight) in adapters.items()}


def _without(adapter: Adapter, components: set[str]) -> Adapter:
    specs = {part: spec for part, spec in adapter.specs.items() if part not in components}
    return replace(
        adapter, specs=specs, tensors={k: t for k, t in adapter.tensors.items() if k.partition(".")[0] in specs}
    )


def summed(adapters: Weighted, component: str) -> tuple[FullSpec, dict[str, Tensor]]:
    """``Σ wᵢ Dᵢ`` of one component's differences.

    Raises:
        AdapterError: differences of other shapes.
    """
    tensors: dict[str, Tensor] = {}
    specs: list[FullSpec] = []
    for name, (adapter, weights) in adapters.items():
        spec = adapter.specs.get(component)
        if not isinstance(spec, FullSpec):
            continue
        specs.append(spec)
        for key, value in adapter.tensors.items():
            if key.partition(".")[0] == component:
                part = weights[split_name(key)[0]] * value.float()
                if key in tensors and tensors[key].shape != part.shape:
                    raise AdapterError(f"'{key}' has another shape in '{name}' than in another adapter.")
                tensors[key] = tensors[key] + part if key in tensors else part
    others = tuple(dict.fromkeys(path for spec in specs for path in spec.others))
    return FullSpec(targets=_targets(specs, component, adapters), others=others), tensors


def _targets(specs: list[FullSpec], component: str, adapters: Weighted) -> Targets:
    targets = specs[0].targets
    if not isinstance(targets, dict) and all(spec.targets == targets for spec in specs):
        return targets
    places = [place for adapter, _ in adapters.values() for place in modules(adapter)]
    return tuple(dict.fromkeys(place.partition(".")[2] for place in places if place.partition(".")[0] == component))


def heads_of(adapters: Weighted) -> tuple[dict[str, Tensor], Adapter | None]:
    """The heads and words of a blend, and an adapter that tells about its heads, if there are any.

    Words are joined. Heads are those of the one adapter that has some, or the mean by weight of equal linear heads with
    the same labels, whose outputs are then the mean of theirs.

    Raises:
        AdapterError: one word in two adapters, different heads, heads that are not linear, or weights that sum to 0.
    """
    words = _words(adapters)
    headed = {name: pair for name, pair in adapters.items() if any(pair[1][head] for head in _heads(pair[0]))}
    if not headed:
        return words, None
    (first, (adapter, _)), *more = headed.items()
    for name, (other, _) in more:
        _check_alike(first, adapter, name, other)
    keys = {f"{place}.{name}": place for place, names in _heads(adapter).items() for name in names}
    if len(headed) == 1:
        return {**{key: adapter.heads[key] for key in keys}, **words}, adapter
    means = {
        key: _mean([(one.heads[key], weights[place]) for one, weights in headed.values()])
        for key, place in keys.items()
    }
    return {**means, **words}, adapter


def _heads(adapter: Adapter) -> Mapping[str, tuple[str, ...]]:
    return adapter.metadata.head_modules


def _mean(heads: list[tuple[Tensor, float]]) -> Tensor:
    total = sum(weight for _, weight in heads)
    if total == 0:
        raise AdapterError("The weights of the heads sum to 0, so they have no mean.")
    return torch.stack([weight / total * head.float() for head, weight in heads]).sum(0)


def _words(adapters: Weighted) -> dict[str, Tensor]:
    words: dict[str, Tensor] = {}
    for name, (adapter, _) in adapters.items():
        places = adapter.metadata.head_modules.items()
        heads = {f"{place}.{key}" for place, keys in places for key in keys}
        for key, row in adapter.heads.items():
            if key in words:
                raise AdapterError(f"'{key}' is in '{name}' and in another adapter; train them with different words.")
            if key not in heads:
                words[key] = row
    return words


def _check_alike(first: str, adapter: Adapter, name: str, other: Adapter) -> None:
    shapes = [_head_shapes(one) for one in (adapter, other)]
    if shapes[0] != shapes[1] or adapter.metadata.heads.get("labels") != other.metadata.heads.get("labels"):
        raise AdapterError(
            f"'{first}' and '{name}' have different heads, of which there is no mean: train them for the same labels,"
            " or keep them apart and activate one."
        )
    for place, names in adapter.metadata.head_modules.items():
        if not set(names) <= {"weight", "bias"}:
            raise AdapterError(f"The heads at '{place}' are not linear, so no head gives the mean of what they say.")


def _head_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    places = adapter.metadata.head_modules.items()
    return {
        f"{place}.{name}": tuple(adapter.heads[f"{place}.{name}"].shape) for place, names in places for name in names
    }

"""One adapter as several, by component or by block, whose ΔW add up to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from torch import Tensor

from visionpeft.adapters.algebra import modules, scales_input
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec, FlatSpec, FullSpec, Ia3Spec, PlacedSpec, RankSpec
from visionpeft.errors import AdapterError, did_you_mean


def component_of(place: str) -> str:
    """The component of a place: "unet"."""
    return place.partition(".")[0]


def block_of(place: str) -> str:
    """The block of a place: "unet.down_blocks.1", "unet.mid_block", "unet" for what is in none."""
    found = re.match(r"unet\.(mid_block|(?:down|up)_blocks\.\d+)(?=\.)", place)
    return found[0] if found else component_of(place)


WAYS: dict[str, Callable[[str], str]] = {"component": component_of, "block": block_of}
"""What an adapter can be split by: name -> the part that a place belongs to."""


def split(adapter: Adapter, by: str = "component") -> dict[str, Adapter]:
    """Return the parts of an adapter by name ("unet", "unet.up_blocks.1"); their ΔW add up to the adapter's.

    Heads and trained words go with the first part of their component, or with the first of all.

    Args:
        adapter: of any method that changes weights.
        by: "component" or "block"; text encoders are one block each.

    Raises:
        AdapterError: an unknown way, a method without a place, or nothing to split: there is one part only.
    """
    if by not in WAYS:
        raise AdapterError(f"Adapters are split by {' or '.join(WAYS)}, not by '{by}'.{did_you_mean(by, WAYS)}")
    if odd := [spec.method for spec in adapter.specs.values() if isinstance(spec, PlacedSpec)]:
        raise AdapterError(f"The method '{odd[0]}' has no layers by which an adapter could be split.")
    groups: dict[str, list[str]] = {}
    for place in modules(adapter):
        groups.setdefault(WAYS[by](place), []).append(place)
    if len(groups) < 2:
        raise AdapterError(f"The adapter has one {by} only ({', '.join(groups)}): there is nothing to split.")
    heads = _heads(adapter, sorted(groups))
    return {name: part(adapter, places, heads[name]) for name, places in sorted(groups.items())}


def part(adapter: Adapter, places: Collection[str], heads: dict[str, Tensor] | None = None) -> Adapter:
    """The adapter of some of an adapter's places alone; its spec targets just these."""
    grouped = modules(adapter)
    tensors = {f"{place}.{name}": tensor for place in places for name, tensor in grouped[place].items()}
    paths: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    for place in places:
        component, _, path = place.partition(".")
        paths.setdefault(component, {})[path] = grouped[place]
    specs = {component: narrowed_spec(adapter.specs[component], inside) for component, inside in paths.items()}
    kept = heads or {}
    modules_of_heads = {
        place: names
        for place, names in adapter.metadata.head_modules.items()
        if all(f"{place}.{name}" in kept for name in names)
    }
    changes = {"head_modules": modules_of_heads, "heads": adapter.metadata.heads if modules_of_heads else {}}
    return replace(
        adapter, specs=specs, tensors=tensors, heads=kept, metadata=adapter.metadata.model_copy(update=changes)
    )


def narrowed_spec(spec: AdapterSpec, inside: Mapping[str, Mapping[str, Tensor]]) -> AdapterSpec:
    """A spec that targets just these of its modules, given by path with their parameters."""
    changes: dict[str, object] = {"targets": tuple(inside)}
    if isinstance(spec, RankSpec):
        changes |= {
            "rank_pattern": {path: rank for path, rank in spec.rank_pattern.items() if path in inside},
            "alpha_pattern": {path: alpha for path, alpha in spec.alpha_pattern.items() if path in inside},
        }
    if isinstance(spec, FlatSpec):
        changes["kernels"] = {path: kernel for path, kernel in spec.kernels.items() if path in inside}
    if isinstance(spec, Ia3Spec):
        changes["feedforward"] = tuple(path for path, parts in inside.items() if scales_input(parts["ia3_l"]))
    if isinstance(spec, FullSpec):
        changes["others"] = tuple(path for path in spec.others if path in inside)
    return spec.model_copy(update=changes)


def _heads(adapter: Adapter, names: list[str]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for head, tensor in adapter.heads.items():
        own = [name for name in names if component_of(name) == component_of(head)]
        found[(own or names)[0]][head] = tensor
    return found

"""The parts of an adapter for the places that its specs and heads name: fresh, or with given values.

Nothing is mounted here, so whatever is refused leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.fit import (
    check_exactly,
    check_parts,
    check_patterns,
    feedforward_targets,
    plain_targets,
    read_parts,
)
from visionpeft.adapters.full import owners, shifts
from visionpeft.adapters.heads import Head, rebuilt, tensors_of
from visionpeft.adapters.methods import branch_of, method_of, new_branch
from visionpeft.adapters.prompt import decoder_prompt
from visionpeft.adapters.resolve import Family
from visionpeft.adapters.slots import Part
from visionpeft.adapters.spec import AdapterSpec, FullSpec, PromptSpec, VptSpec
from visionpeft.adapters.tree import ModelTree
from visionpeft.adapters.vpt import prompts_of, width_of
from visionpeft.errors import AdapterError, did_you_mean

HeadTensors = Mapping[str, Mapping[str, Tensor]]
Parts = dict[str, Part]


def fresh_parts(
    tree: ModelTree, family: Family, specs: Mapping[str, AdapterSpec], heads: Collection[str], seed: int
) -> Parts:
    """New parts by place; the first values depend on the seed alone, and the global state on nothing.

    Raises:
        TargetError: a target names no layer.
        AdapterError: a layer that the method cannot adapt, a family that does not have what it needs, nothing to train.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {place: part for own in specs for place, part in _parts(tree, family, own, specs[own], heads).items()}
    if not parts and not heads:
        methods = ", ".join(spec.method for spec in specs.values())
        raise AdapterError(f"The method '{methods}' trains heads alone, and none are given: give heads=….")
    return parts


def given_parts(tree: ModelTree, family: Family, adapter: Adapter, heads: Collection[str]) -> Parts:
    """Parts with an adapter's values by place.

    Raises:
        TargetError: a target names no layer.
        AdapterError: tensors are missing, unexpected or of a wrong shape.
    """
    found: Parts = {}
    for component, spec in adapter.specs.items():
        found |= _parts(tree, family, component, spec, heads, adapter)
    return found


def _parts(
    tree: ModelTree,
    family: Family,
    component: str,
    spec: AdapterSpec,
    heads: Collection[str],
    given: Adapter | None = None,
) -> Parts:
    where = method_of(spec).where
    if where == "modules":
        return _shifts(tree, family, component, cast("FullSpec", spec), heads, given)
    if where == "tokens":
        return _prompts(tree, family, component, cast("VptSpec", spec), given)
    if where == "decoder":
        return _decoder_prompts(tree, family, component, cast("PromptSpec", spec), given)
    if where == "layers":
        return _branches(tree, family, component, spec, heads, given)
    if given is not None:
        read_parts(given, component, (), ())
    return {}


def _branches(
    tree: ModelTree,
    family: Family,
    component: str,
    spec: AdapterSpec,
    heads: Collection[str],
    given: Adapter | None,
) -> Parts:
    layers = tree.layers(component)
    paths = family.resolve(component, layers, plain_targets(spec))
    _check_places(tree, [f"{component}.{path}" for path in paths], heads)
    if given is not None:
        there = [f"{component}.{path}" for path in layers]
        found = read_parts(given, component, [f"{component}.{path}" for path in paths], there)
        for place, parts in found.items():
            check_parts(spec, place, parts, tree.base(place))
        return {f"{component}.{p}": branch_of(spec, p, layers[p], found[f"{component}.{p}"]) for p in paths}
    check_patterns(component, spec, paths)
    inputs = feedforward_targets(spec)
    scaled = family.resolve(component, layers, inputs) if inputs else []
    return {f"{component}.{path}": new_branch(spec, path, layers[path], feedforward=path in scaled) for path in paths}


def _check_places(tree: ModelTree, places: list[str], heads: Collection[str]) -> None:
    for place in places:
        if isinstance(tree.parent(place), nn.MultiheadAttention):
            raise AdapterError(
                f"'{place}' is inside a torch.nn.MultiheadAttention, which reads its weight and never calls it, so"
                " what is added there would have no effect; leave it out of the targets, or use the method 'full'."
            )
        if any(place == head or place.startswith(head + ".") for head in heads):
            raise AdapterError(f"'{place}' is in a head that the adapter brings, which trains whole; leave it out.")


def _shifts(
    tree: ModelTree, family: Family, component: str, spec: FullSpec, heads: Collection[str], given: Adapter | None
) -> Parts:
    table = owners(tree, family, component, spec, heads)
    if given is None:
        return dict(shifts(table, None))
    there = [f"{component}.{path}" for path in tree.modules(component)]
    found = read_parts(given, component, [place for place, owner in table.items() if owner.own], there)
    for place, parts in found.items():
        check_exactly(place, parts, table[place].shapes)
    return dict(shifts(table, found))


def _prompts(tree: ModelTree, family: Family, component: str, spec: VptSpec, given: Adapter | None) -> Parts:
    modules = tree.modules(component)
    layers = {path: modules[path] for path in family.token_layers(component, modules)}
    if not layers:
        raise AdapterError(
            f"The method 'vpt' puts tokens in front of a transformer's layers, and '{component}' of the family"
            f" '{family.name}' has none that take more tokens than the picture's; use lora or full."
        )
    prefix = family.prefix_tokens(component, tree.components[component])
    if given is None:
        return dict(prompts_of(component, spec, layers, prefix, None))
    entered = list(layers)[: None if spec.deep else 1]
    there = [f"{component}.{path}" for path in modules]
    found = read_parts(given, component, [f"{component}.{path}" for path in entered], there)
    for path in entered:
        place = f"{component}.{path}"
        check_exactly(place, found[place], {"prompts": (spec.tokens, width_of(place, layers[path]))})
    values = {place: parts["prompts"] for place, parts in found.items()}
    return dict(prompts_of(component, spec, layers, prefix, values))


def _decoder_prompts(tree: ModelTree, family: Family, component: str, spec: PromptSpec, given: Adapter | None) -> Parts:
    path = family.decoder(component)
    if not path:
        raise AdapterError(
            f"The method 'prompt' puts vectors in front of what a decoder of text reads, and '{component}' of the"
            f" family '{family.name}' has none; use vpt or lora."
        )
    place = f"{component}.{path}"
    decoder = tree.base(place)
    if given is None:
        return {place: decoder_prompt(spec, decoder, None)}
    found = read_parts(given, component, [place], [f"{component}.{other}" for other in tree.modules(component)])
    width = int(cast("Any", decoder).get_input_embeddings().weight.shape[1])
    check_exactly(place, found[place], {"prompts": (spec.tokens, width)})
    return {place: decoder_prompt(spec, decoder, found[place]["prompts"])}


def head_values(tree: ModelTree, heads: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """The parameters of heads by place; of one head for places that the base ties, under the first of them.

    Raises:
        AdapterError: no such module, a head that a file could not give back, or one module for two untied places.
    """
    values: dict[str, dict[str, Tensor]] = {}
    seen: dict[nn.Module, str] = {}
    for name, module in heads.items():
        place = tree.place(name)
        if module in seen and seen[module] != place and place not in tree.tied(seen[module]):
            raise AdapterError(
                f"One head is given for '{seen[module]}' and '{place}', which are two in the base: give each its own."
            )
        if place in values and seen.get(module) != place:
            raise AdapterError(f"Two heads are given for '{place}', which is one module in the base: give one.")
        if module not in seen:
            values[place] = tensors_of(place, module, tree.base(place))
            seen[module] = place
    return values


def stored_heads(adapter: Adapter) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """An adapter's head tensors by place and parameter, and its trained words by name.

    Raises:
        AdapterError: a tensor of a head is missing, or there is one that belongs to nothing.
    """
    rest = dict(adapter.heads)
    values: dict[str, dict[str, Tensor]] = {}
    for place, names in adapter.metadata.head_modules.items():
        if missing := [name for name in names if f"{place}.{name}" not in rest]:
            raise AdapterError(f"The adapter misses the tensor '{place}.{missing[0]}' of its head.")
        values[place] = {name: rest.pop(f"{place}.{name}") for name in names}
    if stray := [key for key in rest if not _is_word(key)]:
        near = did_you_mean(stray[0], adapter.metadata.head_modules)
        raise AdapterError(f"The adapter brings the head '{stray[0]}', which it does not list among its heads.{near}")
    return values, rest


def _is_word(key: str) -> bool:
    return key.split(".", 2)[1:2] == ["token"]


def head_parts(tree: ModelTree, values: HeadTensors, about: Mapping[str, Any]) -> dict[str, Head]:
    """Heads by place, with followers where the base ties places of which one is given.

    Raises:
        AdapterError: no such module, or parameters that do not make a head there.
    """
    parts: dict[str, Head] = {}
    placed = {tree.place(name): tensors for name, tensors in values.items()}
    for place, tensors in placed.items():
        base = tree.base(place)
        module = rebuilt(place, base, tensors)
        like = next(base.parameters(), next(tree.components[place.partition(".")[0]].parameters()))
        module.to(like.device)
        parts[place] = Head(place, module, about.get("labels"), like.dtype)
        for other in tree.tied(place):
            if other not in placed:
                parts[other] = Head(other, module, about.get("labels"), like.dtype, follows=place)
    return parts

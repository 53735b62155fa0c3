"""Whether an adapter fits a model: names, shapes, ranks and scales, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isclose, sqrt

import torch
from torch import Tensor, nn

from visionpeft.adapters.algebra import delta, modules
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.layers import Branch, Convolution
from visionpeft.adapters.methods import PRINCIPAL, method_of
from visionpeft.adapters.slots import Part
from visionpeft.adapters.spec import (
    AdapterSpec,
    FlatSpec,
    FullSpec,
    Ia3Spec,
    LoraSpec,
    RankSpec,
    RsLoraSpec,
    Targets,
    rank_of,
    scale_of,
)
from visionpeft.errors import AdapterError, did_you_mean


def check_base(about: AdapterMetadata, family: str, base: str, base_hash: str, *, other_base: bool) -> None:
    """Raise AdapterError where an adapter was made for another family, or on other weights and that is not wanted."""
    if about.family and about.family != family:
        raise AdapterError(f"The adapter was made for the family '{about.family}'; this model is '{family}'.")
    if about.base_hash and base_hash and about.base_hash != base_hash and not other_base:
        raise AdapterError(
            f"The adapter was made on '{about.base}', this model is '{base}' with other weights;"
            " attach it with other_base=True to use it all the same."
        )


def check_patterns(component: str, spec: AdapterSpec, paths: Iterable[str]) -> None:
    """Raise AdapterError where a spec sets the rank or alpha of a module that it does not target."""
    known = set(paths)
    if isinstance(spec, RankSpec):
        for path in (*spec.rank_pattern, *spec.alpha_pattern):
            if path not in known:
                near = did_you_mean(path, known)
                raise AdapterError(
                    f"The spec of '{component}' sets a rank or alpha for '{path}', no target of it.{near}"
                )


def captured_spec(spec: AdapterSpec) -> AdapterSpec:
    """The spec of what `capture` returns: PiSSA and OLoRA become plain LoRA of twice the rank and the same scale."""
    if not isinstance(spec, LoraSpec | RsLoraSpec) or spec.init not in PRINCIPAL:
        return spec
    grow = sqrt(2) if isinstance(spec, RsLoraSpec) else 2.0
    ranks = {path: 2 * rank for path, rank in spec.rank_pattern.items()}
    alphas = {path: grow * alpha for path, alpha in spec.alpha_pattern.items()}
    if spec.alpha is None:  # alpha followed each rank
        alphas |= {path: grow * rank for path, rank in spec.rank_pattern.items() if path not in alphas}
    alpha = grow * (spec.rank if spec.alpha is None else spec.alpha)
    changes = {"rank": 2 * spec.rank, "alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas, "init": "default"}
    return spec.model_copy(update=changes)


def with_kernels(spec: AdapterSpec, layers: Mapping[str, nn.Module]) -> AdapterSpec:
    """The spec, with what its method keeps of the adapted modules: kernels of convolutions, what is no layer at all."""
    if isinstance(spec, FullSpec):
        odd = tuple(path for path, layer in layers.items() if not isinstance(layer, nn.Linear | Convolution))
        return spec.model_copy(update={"others": odd})
    if not isinstance(spec, FlatSpec):
        return spec
    found = {path: layer_shape(layer)[2:] for path, layer in layers.items() if isinstance(layer, Convolution)}
    return spec.model_copy(update={"kernels": found})


def feedforward_targets(spec: AdapterSpec) -> Targets:
    """The targets whose inputs (IA)³ scales; empty for other methods."""
    return spec.feedforward if isinstance(spec, Ia3Spec) else ()


def plain_targets(spec: AdapterSpec) -> Targets:
    """The targets of one component's spec.

    Raises:
        AdapterError: they are a table by component.
    """
    if isinstance(spec.targets, dict):
        raise AdapterError(f"A component's own spec has plain targets, not a table for {sorted(spec.targets)}.")
    return spec.targets


def read_parts(
    adapter: Adapter, component: str, wanted: Iterable[str], modules_there: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    """Return an adapter's tensors for one component by place and parameter.

    Args:
        adapter: the adapter.
        component: the component.
        wanted: the places ("component.path") that its spec means on this model.
        modules_there: all places that it could mean.

    Raises:
        AdapterError: a place is missing or unexpected.
    """
    found = {place: parts for place, parts in modules(adapter).items() if place.partition(".")[0] == component}
    wanted, there = set(wanted), set(modules_there)
    if strange := [place for place in found if place not in there]:
        near = did_you_mean(strange[0], there)
        raise AdapterError(f"The adapter has {_some(strange)}, and this model has no such layer.{near}")
    if unexpected := [place for place in found if place not in wanted]:
        raise AdapterError(f"The adapter has tensors for {_some(unexpected)}, which its spec does not target.")
    if missing := sorted(wanted - set(found)):
        raise AdapterError(f"The adapter misses the tensors of {_some(missing)}, which its spec targets.")
    return found


def check_exactly(place: str, parts: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise AdapterError where a place's tensors are not of exactly these names and shapes."""
    if odd := sorted(set(parts) ^ set(shapes)):
        has = "misses" if odd[0] in shapes else "has the unexpected"
        raise AdapterError(f"The adapter {has} tensor '{odd[0]}' at '{place}'.")
    for name, shape in shapes.items():
        if tuple(parts[name].shape) != shape:
            raise AdapterError(f"'{place}': '{name}' is {tuple(parts[name].shape)} instead of {shape}.")


def _some(places: list[str]) -> str:
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(f"'{place}'" for place in places[:3]) + more


def check_parts(spec: AdapterSpec, place: str, parts: Mapping[str, Tensor], layer: nn.Module) -> None:
    """Raise AdapterError where tensors of a method that changes layers do not fit their layer."""
    path = place.partition(".")[2]
    allowed = method_of(spec).parameters
    if unexpected := [name for name in parts if name not in allowed]:
        raise AdapterError(f"'{place}' has '{unexpected[0]}'; {spec.method} has only {', '.join(allowed)}.")
    shape = layer_shape(layer)
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    try:
        with torch.device("meta"):
            blank = {name: torch.empty(size) for name, size in shapes.items()}
            change = delta(spec, blank, torch.empty(shape), path=path)
    except KeyError as error:
        raise AdapterError(f"'{place}' misses the tensor {error}.") from None
    except (RuntimeError, ValueError, IndexError) as error:
        raise AdapterError(f"'{place}': tensors of shapes {shapes} do not fit a weight of shape {shape}.") from error
    if tuple(change.shape) != shape or not _factors_fit(spec, path, shapes, len(shape)):
        rank = f" at rank {rank_of(spec, path)}" if isinstance(spec, RankSpec) else ""
        raise AdapterError(f"'{place}': tensors of shapes {shapes} do not fit a weight of shape {shape}{rank}.")


def _factors_fit(spec: AdapterSpec, path: str, shapes: Mapping[str, tuple[int, ...]], dimensions: int) -> bool:
    if "lora_A.weight" not in shapes or not isinstance(spec, RankSpec):
        return True
    down, up = shapes["lora_A.weight"], shapes["lora_B.weight"]
    return len(down) == len(up) == dimensions and down[0] == up[1] == rank_of(spec, path)


def layer_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, quantized or not."""
    if isinstance(layer, Convolution):
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    raise AdapterError(f"A {type(layer).__name__} cannot be adapted.")


def scales_differ(specs: Mapping[str, AdapterSpec], other: Adapter, branches: Mapping[str, Part]) -> str:
    """The first place where two adapters have another method or scale, or ""."""
    for place in branches:
        component, _, path = place.partition(".")
        mine, theirs = specs[component], other.specs.get(component)
        if theirs is None or mine.method != theirs.method:
            return place
        if not isclose(scale_of(mine, path), scale_of(theirs, path), rel_tol=1e-6):
            return place
    return ""


def check_swap(
    name: str, branches: Mapping[str, Part], rows: Mapping[str, Tensor], adapter: Adapter
) -> list[tuple[Tensor, Tensor]]:
    """Return (target, source) pairs that put an adapter's values into branches and rows.

    Raises:
        AdapterError: it has other tensors or shapes.
    """
    targets = {f"{place}.{part}": tensor for place, branch in branches.items() for part, tensor in branch.whole.items()}
    for kind, have, give in (("tensor", targets, adapter.tensors), ("head", rows, adapter.heads)):
        if odd := sorted(set(have) ^ set(give)):
            raise AdapterError(f"Adapter '{name}': the {kind} '{odd[0]}' is only in one of the two; swap takes equals.")
        for key, tensor in have.items():
            if tensor.shape != give[key].shape:
                shapes = f"{tuple(give[key].shape)} instead of {tuple(tensor.shape)}"
                raise AdapterError(f"Adapter '{name}': '{key}' has shape {shapes}; swap takes equal shapes.")
    pairs = [(row, adapter.heads[key]) for key, row in rows.items()]
    for place, branch in branches.items():
        pairs += _pairs(place, branch, adapter.tensors)
    return pairs


def _pairs(place: str, branch: Part, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    if not isinstance(branch, Branch) or not branch.start:
        return [(part, tensors[f"{place}.{name}"]) for name, part in branch.parts.items()]
    down, up = tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"]
    rank = down.shape[0] // 2
    return [
        (branch.parts["lora_A.weight"], down[:rank]),
        (branch.parts["lora_B.weight"], up[:, :rank]),
        (branch.start["lora_A.weight"], down[rank:]),
        (branch.start["lora_B.weight"], -up[:, rank:]),
    ]

"""Branches for the layers that specs name: fresh ones, or ones with an adapter's values. Nothing is mounted here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.fit import check_patterns, feedforward_targets, plain_targets, read_parts
from visionpeft.adapters.layers import Branch
from visionpeft.adapters.methods import branch_of, new_branch
from visionpeft.adapters.resolve import Family
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.adapters.tree import ModelTree


def fresh_branches(tree: ModelTree, family: Family, specs: Mapping[str, AdapterSpec], seed: int) -> dict[str, Branch]:
    """New branches by "component.path"; the first values depend on the seed alone, and the global state on nothing.

    Raises:
        TargetError: a target names no layer.
        AdapterError: a layer that the method cannot adapt.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {place: branch for part in specs for place, branch in _fresh(tree, family, part, specs[part]).items()}


def _fresh(tree: ModelTree, family: Family, component: str, spec: AdapterSpec) -> dict[str, Branch]:
    layers = tree.layers(component)
    paths = family.resolve(component, layers, plain_targets(spec))
    check_patterns(component, spec, paths)
    inputs = feedforward_targets(spec)
    scaled = family.resolve(component, layers, inputs) if inputs else []
    return {f"{component}.{path}": new_branch(spec, path, layers[path], feedforward=path in scaled) for path in paths}


def given_branches(tree: ModelTree, family: Family, adapter: Adapter) -> dict[str, Branch]:
    """Branches with an adapter's values by "component.path".

    Raises:
        TargetError: a target names no layer.
        AdapterError: tensors are missing, unexpected or of a wrong shape.
    """
    layers: dict[str, nn.Module] = {}
    wanted: list[str] = []
    for component, spec in adapter.specs.items():
        table = tree.layers(component)
        layers |= {f"{component}.{path}": layer for path, layer in table.items()}
        wanted += [f"{component}.{path}" for path in family.resolve(component, table, plain_targets(spec))]
    parts = read_parts(adapter, wanted, layers)
    branches: dict[str, Branch] = {}
    for place in wanted:
        component, _, path = place.partition(".")
        branches[place] = branch_of(adapter.specs[component], path, layers[place], parts[place])
    return branches

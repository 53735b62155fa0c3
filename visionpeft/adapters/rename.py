"""An adapter that was saved when the layers had other names, under the names of today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.resolve import Family
from visionpeft.adapters.spec import AdapterSpec, Targets
from visionpeft.errors import AdapterError

_BY_PATH = ("rank_pattern", "alpha_pattern", "kernels")
T = TypeVar("T")


def with_newest_names(adapter: Adapter, family: Family, components: Mapping[str, nn.Module]) -> Adapter:
    """Return the adapter with every path in its tensors, heads and specs as the family calls it today.

    Args:
        adapter: of any version of the library.
        family: of the model.
        components: the model's, which tell what is one layer still.

    Raises:
        AdapterError: two of its tensors get one name, or one cannot be shared out among the layers of today.
    """

    def newest(place: str) -> str:
        component, _, name = place.partition(".")
        return f"{component}.{family.canonical(component, name)}"

    specs = {part: _spec(spec, partial(family.canonical, part)) for part, spec in adapter.specs.items()}
    named = replace(adapter, specs=specs, tensors=_keys(adapter.tensors, newest), heads=_keys(adapter.heads, newest))
    return family.divided(named, components)


def _keys(table: Mapping[str, T], newest: Callable[[str], str]) -> dict[str, T]:
    named = {newest(name): value for name, value in table.items()}
    if len(named) < len(table):
        twice = next(name for name in table if newest(name) != name and newest(name) in table)
        raise AdapterError(f"Both '{twice}' and '{newest(twice)}' are in the adapter, which name the same tensor.")
    return named


def _spec(spec: AdapterSpec, newest: Callable[[str], str]) -> AdapterSpec:
    changes: dict[str, Any] = {}
    for field in _BY_PATH:
        if table := getattr(spec, field, None):
            changes[field] = _keys(table, newest)
    if not isinstance(spec.targets, dict):
        changes["targets"] = _targets(spec.targets, newest)
    return spec.model_copy(update=changes) if changes else spec


def _targets(targets: Targets, newest: Callable[[str], str]) -> Targets:
    if isinstance(targets, str):
        return targets if targets.startswith("re:") else newest(targets)
    return tuple(target if target.startswith("re:") else newest(target) for target in targets)

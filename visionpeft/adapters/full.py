"""Full tuning: which parameters of a component it shifts, and where each of them is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visionpeft.adapters.algebra import DIFF
from visionpeft.adapters.layers import Shift
from visionpeft.adapters.methods import is_quantized, refuse_sharded
from visionpeft.adapters.resolve import Family
from visionpeft.adapters.spec import FullSpec
from visionpeft.adapters.tree import ModelTree
from visionpeft.errors import AdapterError

ALL = "all"


@dataclass
class Owner:
    """What full tuning shifts in one module.

    Attributes:
        module: it.
        own: its parameters by name.
        tied: parameters that an earlier module has too: name -> (place, name there).
    """

    module: nn.Module
    own: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
    tied: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the differences by name."""
        return {name + DIFF: tuple(parameter.shape) for name, parameter in self.own.items()}


def owners(tree: ModelTree, family: Family, component: str, spec: FullSpec, heads: Collection[str]) -> dict[str, Owner]:
    """The modules that are shifted by place, in the model's order: the targets, and whatever is tied to them.

    Args:
        tree: the model.
        family: its names.
        component: the component.
        spec: its targets.
        heads: places that the adapter's own heads take, which are left out.

    Raises:
        TargetError: a target names no module.
        AdapterError: a quantized module, or a parameter that belongs to the component itself.
    """
    table = {path: _parameters(family, component, path, module) for path, module in tree.modules(component).items()}
    free = {path: own for path, own in table.items() if own and not _within(f"{component}.{path}", heads)}
    modules = {path: tree.base(f"{component}.{path}") for path in free}
    every = spec.targets in (ALL, (ALL,))
    targets = () if isinstance(spec.targets, dict) else spec.targets
    chosen = list(free) if every else family.resolve(component, modules, targets)
    wanted = {id(parameter) for path in chosen for parameter in free[path].values()}
    found: dict[str, Owner] = {}
    first: dict[int, tuple[str, str]] = {}
    for path, parameters in free.items():
        place = f"{component}.{path}"
        shared = {name: first[id(p)] for name, p in parameters.items() if id(p) in first}
        own = {name: p for name, p in parameters.items() if id(p) in wanted and id(p) not in first}
        first |= {id(p): (place, name) for name, p in own.items()}
        if own or shared:
            _check(place, path, modules[path])
            found[place] = Owner(modules[path], own, shared)
    return found


def shifts(table: Mapping[str, Owner], given: Mapping[str, Mapping[str, Tensor]] | None) -> dict[str, Shift]:
    """The differences by place: those given by place and name ("weight.diff"), or zeros."""
    made: dict[str, Shift] = {}
    for place, owner in table.items():
        values = _zeros(owner) if given is None else given.get(place, {})
        tied = {name + DIFF: made[where].parts[there + DIFF] for name, (where, there) in owner.tied.items()}
        follows = "" if owner.own else next(iter(owner.tied.values()))[0]
        made[place] = Shift(values, tied, follows).to(next(owner.module.parameters()).device)
    return made


def _zeros(owner: Owner) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in owner.shapes.items()}


def _parameters(family: Family, component: str, path: str, module: nn.Module) -> dict[str, nn.Parameter]:
    own = dict(module.named_parameters(recurse=False))
    return {name: p for name, p in own.items() if not family.fixed(component, f"{path}.{name}".lstrip("."))}


def _within(place: str, heads: Collection[str]) -> bool:
    return any(place == head or place.startswith(head + ".") for head in heads)


def _check(place: str, path: str, module: nn.Module) -> None:
    refuse_sharded(place, module, "full tuning")
    if is_quantized(module):
        raise AdapterError(f"'{place}' is quantized: full tuning needs the weights themselves; use lora.")
    if not path:
        names = ", ".join(name for name, _ in module.named_parameters(recurse=False))
        raise AdapterError(
            f"{names}: of '{place[:-1]}' itself, which no slot can hold; name the modules to train as targets instead."
        )

"""The module trees of a model's components, and the adapted layers in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from visionpeft.adapters.layers import AdaptedLayer, Branch
from visionpeft.adapters.resolve import Family
from visionpeft.errors import AdapterError


class ModelTree:
    """Finds layers by place ("component.canonical.path"), puts adapted layers in and the original ones back.

    Args:
        components: name -> module; their parameters are frozen.
        family: how their layers are called.

    Raises:
        AdapterError: a component is adapted already, by another manager or by peft itself.
    """

    def __init__(self, components: Mapping[str, nn.Module], family: Family) -> None:
        self.components = dict(components)
        self.adapted: dict[str, AdaptedLayer] = {}
        self._family = family
        self._paths: dict[str, dict[str, str]] = {}
        for component, module in self.components.items():
            _refuse_adapted(component, module)
            self._paths[component] = family.layers(component, module)
            module.requires_grad_(False)

    def layers(self, component: str) -> dict[str, nn.Module]:
        """Canonical path -> original layer of one component, in its module's order."""
        return {path: self.base(f"{component}.{path}") for path in self._paths[component]}

    def base(self, place: str) -> nn.Module:
        """The original layer at a place."""
        return self.adapted[place].base if place in self.adapted else self._at(place)

    def put(self, place: str, name: str, branch: Branch) -> None:
        """Add an adapter's branch to the layer at a place."""
        if place not in self.adapted:
            self.adapted[place] = AdaptedLayer(self._at(place))
            self._set(place, self.adapted[place])
        self.adapted[place].put(name, branch)

    def drop(self, place: str, name: str) -> None:
        """Remove an adapter's branch; after the last one the original layer is back in its place."""
        layer = self.adapted[place]
        layer.drop(name)
        if not layer.branches:
            self._set(place, layer.base)
            del self.adapted[place]

    def hide(self) -> None:
        """Put all original layers back, keeping the adapted ones for `show`."""
        for place, layer in self.adapted.items():
            self._set(place, layer.base)

    def show(self) -> None:
        """Put the adapted layers in again after `hide`, on the device and in the mode of the original ones."""
        for place, layer in self.adapted.items():
            layer.train(layer.base.training)
            layer.branches.to(next(layer.base.parameters()).device)
            self._set(place, layer)

    def _at(self, place: str) -> nn.Module:
        component, _, path = place.partition(".")
        return self.components[component].get_submodule(self._paths[component][path])

    def _set(self, place: str, module: nn.Module) -> None:
        component, _, path = place.partition(".")
        parent, _, name = self._paths[component][path].rpartition(".")
        setattr(self.components[component].get_submodule(parent), name, module)


def _refuse_adapted(component: str, module: nn.Module) -> None:
    for path, child in module.named_modules():
        if isinstance(child, AdaptedLayer) or hasattr(child, "base_layer"):
            raise AdapterError(
                f"'{component}.{path}' is adapted already; use its manager, or remove what is there first."
            )

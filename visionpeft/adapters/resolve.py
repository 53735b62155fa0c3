"""What the manager must know of a model family, and which component a spec is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec, Targets
from visionpeft.errors import AdapterError, did_you_mean


class Family(Protocol):
    """A model family, as far as adapters go; `visionpeft.models.family` has the real ones."""

    @property
    def name(self) -> str:
        """Its name, "sd1" for example."""
        ...

    def layers(self, component: str, module: nn.Module) -> dict[str, str]:
        """Canonical path -> path in this library version's module tree, of every linear layer and convolution."""
        ...

    def modules(self, component: str, module: nn.Module) -> dict[str, tuple[str, ...]]:
        """Canonical path -> actual paths of every module; several where one module is reached in several ways."""
        ...

    def token_layers(self, component: str, paths: Iterable[str]) -> list[str]:
        """Those of the canonical paths that are layers of tokens, in order; none where the family tells of none."""
        ...

    def prefix_tokens(self, component: str, module: nn.Module) -> int:
        """How many tokens stand before the picture's."""
        ...

    def decoder(self, component: str) -> str:
        """The canonical path of the decoder of text, or nothing where there is none."""
        ...

    def fixed(self, component: str, parameter: str) -> bool:
        """Whether a parameter, by canonical path, never trains."""
        ...

    def canonical(self, component: str, name: str) -> str:
        """The newest name of a module, parameter or saved tensor that may have an earlier library version's name."""
        ...

    def divided(self, adapter: Adapter, components: Mapping[str, nn.Module]) -> Adapter:
        """The adapter, its names the newest, with what it has of layers that are several now shared out among them."""
        ...

    def resolve(self, component: str, layers: Mapping[str, nn.Module], targets: Targets) -> list[str]:
        """The canonical paths that targets name, in the order of `layers`; TargetError where a target names none."""
        ...


def split_spec(spec: AdapterSpec | Mapping[str, AdapterSpec], components: Sequence[str]) -> dict[str, AdapterSpec]:
    """Return one spec for each component that is adapted, in the order of the components.

    Raises:
        AdapterError: an unknown component.
    """
    if isinstance(spec, Mapping):
        table = dict(spec)
    elif isinstance(spec.targets, dict):
        table = {part: spec.model_copy(update={"targets": targets}) for part, targets in spec.targets.items()}
    else:
        table = {components[0]: spec}
    for component in table:
        check_component(component, components)
    return {component: _own(component, table[component]) for component in components if component in table}


def _own(component: str, spec: AdapterSpec) -> AdapterSpec:
    if not isinstance(spec.targets, dict):
        return spec
    if component not in spec.targets:
        raise AdapterError(f"The spec of '{component}' has targets only for {sorted(spec.targets)}.")
    return spec.model_copy(update={"targets": spec.targets[component]})


def check_component(component: str, components: Sequence[str]) -> None:
    """Raise AdapterError for a component that the model does not have."""
    if component not in components:
        near = did_you_mean(component, components)
        raise AdapterError(f"Component '{component}': this model has {', '.join(components)}.{near}")

"""The module trees of a model's components, and the slots in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from visionpeft.adapters.heads import HeadSlot
from visionpeft.adapters.layers import AdaptedLayer, is_batch_norm
from visionpeft.adapters.prompt import PromptedDecoder
from visionpeft.adapters.resolve import Family
from visionpeft.adapters.slots import Part, Slot, plain
from visionpeft.adapters.vpt import PromptedLayer
from visionpeft.errors import AdapterError, did_you_mean

Chain = dict[type[Slot], Slot]


class ModelTree:
    """Finds modules by place ("component.canonical.path"), puts slots in their place and the originals back.

    Args:
        components: name -> module; their parameters are frozen.
        family: how their layers are called.

    Raises:
        AdapterError: a component is adapted already, by another manager or by peft itself.
    """

    def __init__(self, components: Mapping[str, nn.Module], family: Family) -> None:
        self.components = dict(components)
        self._chains: dict[str, Chain] = {}
        self._paths: dict[str, dict[str, tuple[str, ...]]] = {}
        self._layers: dict[str, list[str]] = {}
        for component, module in self.components.items():
            _refuse_adapted(component, module)
            self._paths[component] = family.modules(component, module)
            self._layers[component] = list(family.layers(component, module))
            module.requires_grad_(False)

    @property
    def adapted(self) -> dict[str, AdaptedLayer]:
        """Place -> slot, where an adapter changes what the module computes."""
        return {
            p: slot for p, chain in self._chains.items() if isinstance(slot := chain.get(AdaptedLayer), AdaptedLayer)
        }

    @property
    def heads(self) -> dict[str, HeadSlot]:
        """Place -> slot, where adapters bring heads."""
        return {p: slot for p, chain in self._chains.items() if isinstance(slot := chain.get(HeadSlot), HeadSlot)}

    def layers(self, component: str) -> dict[str, nn.Module]:
        """Canonical path -> original of every linear layer and convolution of a component, in its module's order."""
        return {path: self.base(f"{component}.{path}") for path in self._layers[component]}

    def modules(self, component: str) -> dict[str, nn.Module]:
        """Canonical path -> original of every module of a component, in its order; the component itself is ""."""
        return {path: self.base(f"{component}.{path}") for path in self._paths[component]}

    def batch_norms(self, component: str) -> list[str]:
        """The places of a component's batch norms."""
        return [f"{component}.{path}" for path, module in self.modules(component).items() if is_batch_norm(module)]

    def base(self, place: str) -> nn.Module:
        """The original module at a place."""
        component, _, path = place.partition(".")
        return plain(_reach(self.components[component], self._paths[component][path][0]))

    def parent(self, place: str) -> nn.Module:
        """The original of the module that holds the one at a place."""
        component, _, path = place.partition(".")
        return plain(_reach(self.components[component], self._paths[component][path][0].rpartition(".")[0]))

    def place(self, name: str) -> str:
        """The place that "component.path" means, where a module may be reached in several ways.

        Raises:
            AdapterError: there is no such module.
        """
        component, _, path = name.partition(".")
        paths = self._paths.get(component, {})
        found = path if path in paths else next((own for own, several in paths.items() if path in several), "")
        if not found:
            places = [f"{part}.{own}" for part, table in self._paths.items() for own in table]
            raise AdapterError(f"There is no module '{name}' in this model.{did_you_mean(name, places)}")
        return f"{component}.{found}"

    def tied(self, place: str) -> list[str]:
        """Other places of the component whose module has the very same parameters: one module in several bodies."""
        component = place.partition(".")[0]
        own = [id(parameter) for parameter in self.base(place).parameters()]
        found: list[str] = []
        for path, module in self.modules(component).items():
            other = f"{component}.{path}"
            apart = path and not _inside(other, place) and not _inside(place, other)
            if own and apart and [id(parameter) for parameter in module.parameters()] == own:
                found.append(other)
        return found

    def put(self, place: str, name: str, part: Part) -> None:
        """Add an adapter's part to the module at a place."""
        chain = self._chains.setdefault(place, {})
        if part.kind not in chain:
            chain[part.kind] = part.kind(self.base(place))
            self._link(place)
        chain[part.kind].put(name, part)

    def part(self, place: str, name: str) -> Part:
        """An adapter's part at a place."""
        return next(slot.branch(name) for slot in self._chains[place].values() if slot.has(name))

    def drop(self, place: str, name: str) -> None:
        """Remove an adapter's part; after the last one the original module is back in its place and its mode."""
        chain = self._chains[place]
        kind, slot = next((kind, slot) for kind, slot in chain.items() if slot.has(name))
        slot.drop(name)
        if not slot.branches:
            del chain[kind]
            base = plain(slot)
            base.training = slot.training
            self._link(place, base)
        if not chain:
            del self._chains[place]

    def act(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        """Let every adapter act at its weights by place; where it has none it does not act."""
        for place, chain in self._chains.items():
            for slot in chain.values():
                slot.act(tuple((name, weight) for name, weight in _weights_at(place, slot, weights) if weight))

    def check(self) -> None:
        """Raise AdapterError where active adapters cannot act together."""
        for chain in self._chains.values():
            for slot in chain.values():
                slot.check()

    def refuse_prompts(self) -> None:
        """Raise AdapterError where prompts act, which no weight can hold."""
        for place, chain in self._chains.items():
            slot = chain.get(PromptedLayer) or chain.get(PromptedDecoder)
            if slot is not None and slot.active:
                raise AdapterError(
                    f"Adapter '{slot.active[0][0]}' puts prompts in front of '{place}', which no weight can hold: run"
                    " it live, or merge without it."
                )

    def hide(self, instead: Mapping[str, nn.Module]) -> None:
        """Put all originals back, or what is given instead, keeping the slots for `show`."""
        for place in self._chains:
            self._set(place, self.base(place))
        for place, module in instead.items():
            self._set(place, module)

    def show(self) -> None:
        """Put the slots in again after `hide`, on the device and in the mode of the originals."""
        for place in (*self.heads, *self._chains):  # a head may hold other places
            for slot in self._chains[place].values():
                slot.follow()
            self._link(place, plain(next(iter(self._chains[place].values()))))

    def _link(self, place: str, base: nn.Module | None = None) -> None:
        outermost = self.base(place) if base is None else base
        for slot in sorted(self._chains[place].values(), key=lambda slot: slot.order):
            slot.base = outermost
            outermost = slot
        self._set(place, outermost)

    def _set(self, place: str, module: nn.Module) -> None:
        component, _, path = place.partition(".")
        for actual in self._paths[component][path]:
            parent, _, name = actual.rpartition(".")
            setattr(plain(_reach(self.components[component], parent)), name, module)


def _reach(root: nn.Module, path: str) -> nn.Module:
    """What stands at an actual path, a module or its slot; on the way through the slots to their modules."""
    module = root
    for name in path.split(".") if path else ():
        module = plain(module).get_submodule(name)
    return module


def _weights_at(place: str, slot: Slot, weights: Mapping[str, Mapping[str, float]]) -> Iterable[tuple[str, float]]:
    for name, table in weights.items():
        if slot.has(name):
            yield name, table.get(slot.branch(name).follows or place, 0.0)


def _inside(place: str, other: str) -> bool:
    return place == other or place.startswith(other + ".")


def _refuse_adapted(component: str, module: nn.Module) -> None:
    for path, child in module.named_modules():
        if isinstance(child, Slot) or hasattr(child, "base_layer"):
            raise AdapterError(
                f"'{component}.{path}' is adapted already; use its manager, or remove what is there first."
            )

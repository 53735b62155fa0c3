"""The owner of all adapters on a model: what is there, what acts, what trains, and the way back to the plain model."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.build import fresh_parts, given_parts, head_parts, head_values, stored_heads
from visionpeft.adapters.fit import captured_spec, check_base, check_swap, scales_differ, with_kernels
from visionpeft.adapters.heads import Head
from visionpeft.adapters.layers import Still
from visionpeft.adapters.merging import Merged, check_ties, merge_layer
from visionpeft.adapters.methods import refuse_sharded
from visionpeft.adapters.rename import with_newest_names
from visionpeft.adapters.resolve import Family, check_component, split_spec
from visionpeft.adapters.slots import Part
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.adapters.state import Held, Report, Status
from visionpeft.adapters.tokens import Words
from visionpeft.adapters.tree import ModelTree
from visionpeft.adapters.weights import LayerWeights, Weights, check_name, layer_weights, read_weights
from visionpeft.errors import AdapterError

__all__ = ["AdapterManager", "Report", "Status"]
_NAME = re.compile(r"[\w+-]+")


class AdapterManager:
    """Adds, attaches, activates, merges and removes adapters. It freezes the model; only adapters ever train.

    Args:
        components: name -> module, the one for plain targets first.
        family: their family.
        tokenizers: text encoder's name -> its tokenizer, for trained words.
        base: the id of the base.
        base_hash: the content hash of its weights; empty where unknown.

    Raises:
        AdapterError: a component is adapted already.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        family: Family,
        tokenizers: Mapping[str, Any] | None = None,
        base: str = "",
        base_hash: str = "",
    ) -> None:
        self.family, self.base, self.base_hash = family, base, base_hash
        self._tree = ModelTree(components, family)
        self._words = Words(self.components, tokenizers or {})
        self._held: dict[str, Held] = {}
        self._merged: list[Merged] | None = None
        self._merged_names: tuple[str, ...] = ()

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that are managed, by name."""
        return self._tree.components

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they came."""
        return list(self._held)

    def status(self) -> dict[str, Status]:
        """The state of every adapter by name."""
        return {name: self._status(name) for name in self._held}

    def words(self, name: str) -> list[str]:
        """The trained words of an adapter."""
        check_name(name, self.names)
        return self._words.of(name)

    def _status(self, name: str) -> Status:
        held, parameters = self._held[name], self._parameters(name)
        methods = {component: spec.method for component, spec in held.specs.items()}
        trains = any(parameter.requires_grad for parameter in parameters)
        return Status(methods, held.report(parameters), held.weight, trains, name in self._merged_names)

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return list(self.parameters(name).values())

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's float32 parameters by the names of `capture` ("model.vit.layernorm.weight.diff").

        Components come in the model's order; in each, layers in its order, then heads, then trained words. Of an
        adapter that began with PiSSA or OLoRA, they are those that train.

        Raises:
            AdapterError: an unknown name.
        """
        check_name(name, self.names)
        held = self._held[name]
        own = {f"{place}.{key}": p for place in held.weighed for key, p in self._tree.part(place, name).parts.items()}
        own |= dict(sorted(self._words.rows(name).items()))
        order = list(self.components)
        return dict(sorted(own.items(), key=lambda entry: order.index(entry[0].partition(".")[0])))

    def add(
        self,
        name: str,
        spec: AdapterSpec | Mapping[str, AdapterSpec],
        *,
        heads: Mapping[str, nn.Module] | None = None,
        about: Mapping[str, Any] | None = None,
        tokens: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> Report:
        """Put a new, trainable adapter on the model, active at weight 1.

        The model's output does not change yet, but for a new head and the prompts of VPT.

        Args:
            name: letters, digits, "_", "+" and "-".
            spec: one for all its targets, or one by component.
            heads: "component.path" -> the module that answers there while the adapter is active, its values copied; a
                linear layer, or of the structure that the base's has. It trains whole.
            about: what belongs to the heads, as JSON: {"labels": […], "preprocessing": {…}}.
            tokens: new word -> existing word that it starts from ("<robot>": "toy"), trained in every text encoder.
            seed: of the first values; the same on every device. The global random state is left alone.

        Raises:
            TargetError: a target names no layer.
            AdapterError: a name in use, an unknown component, a layer that the method cannot adapt, a head that a file
                could not give back.
        """
        self._check_free(name)
        specs = split_spec(spec, list(self.components))
        values = head_values(self._tree, heads or {})
        new_heads = head_parts(self._tree, values, about or {})
        parts = fresh_parts(self._tree, self.family, specs, new_heads, seed)
        rows = self._words.first_rows(tokens) if tokens else {}
        metadata = AdapterMetadata(
            family=self.family.name, base=self.base, base_hash=self.base_hash,
            trigger_words=tuple(sorted(tokens or {})), heads=dict(about or {}),
            head_modules={place: tuple(tensors) for place, tensors in values.items()},
        )  # fmt: skip
        return self._mount(name, Held(specs, metadata), parts, new_heads, rows, trainable=True)

    def attach(
        self, name: str, adapter: Adapter | str | Path, *, trainable: bool = False, other_base: bool = False
    ) -> Report:
        """Put a finished adapter on the model, strictly, all of it or nothing, and activate it at weight 1.

        Args:
            name: what it is called from now on.
            adapter: the value, or the path of a native file.
            trainable: let it train on.
            other_base: take it although it was made on other weights of the same family.

        Raises:
            AdapterError: of another family or base, or tensors are missing, unexpected or of a wrong shape.
            FileFormatError: the file cannot be read.
        """
        self._check_free(name)
        value = self._of_today(adapter if isinstance(adapter, Adapter) else Adapter.load(adapter))
        check_base(value.metadata, self.family.name, self.base, self.base_hash, other_base=other_base)
        for component in value.specs:
            check_component(component, list(self.components))
        values, rows = stored_heads(value)
        heads = head_parts(self._tree, values, value.metadata.heads)
        parts = given_parts(self._tree, self.family, value, heads)
        self._words.check(rows)
        held = Held(dict(value.specs), value.metadata)
        return self._mount(name, held, parts, heads, rows, trainable=trainable)

    def remove(self, *names: str) -> None:
        """Take adapters off. After the last one the original modules are back and `state_dict()` is bit-equal.

        Raises:
            AdapterError: an unknown name, or adapters are merged.
        """
        self._check_unmerged()
        for name in names:
            check_name(name, self.names)
        for name in dict.fromkeys(names):
            held = self._held.pop(name)
            for place in (*held.weighed, *held.others):
                self._tree.drop(place, name)
            self._words.drop(name)
        self._project()

    def capture(self, name: str) -> Adapter:
        """Return an adapter as a value, its tensors copied to the CPU.

        PiSSA and OLoRA come out as plain LoRA of twice the rank, whose ΔW is theirs exactly.

        Raises:
            AdapterError: an unknown name.
        """
        check_name(name, self.names)
        held = self._held[name]
        tensors: dict[str, Tensor] = {}
        for place in held.places:
            for parameter, tensor in self._tree.part(place, name).whole.items():
                tensors[f"{place}.{parameter}"] = _copied(tensor)
        heads = {key: _copied(row) for key, row in self._whole_heads(name).items()}
        specs = {component: captured_spec(spec) for component, spec in held.specs.items()}
        return Adapter(specs, tensors, heads, held.metadata)

    def swap(self, name: str, adapter: Adapter | str | Path) -> None:
        """Put another adapter's values in place of one's own: storage, scales and activation stay as they are.

        So it is safe under torch.compile and recorded steps, and it is how training goes on from a checkpoint.

        Raises:
            AdapterError: it is not of the same modules, shapes and scales; nothing is changed then.
        """
        check_name(name, self.names)
        value = self._of_today(adapter if isinstance(adapter, Adapter) else Adapter.load(adapter))
        held = self._held[name]
        branches = {place: self._tree.part(place, name) for place in held.places}
        specs = {component: captured_spec(spec) for component, spec in held.specs.items()}
        if differing := scales_differ(specs, value, branches):
            raise AdapterError(
                f"Adapter '{name}': '{differing}' has another scale in the one to swap in; remove and attach."
            )
        copies = check_swap(name, branches, self._whole_heads(name), value)
        with torch.no_grad():
            for target, source in copies:
                target.copy_(source)

    def _whole_heads(self, name: str) -> dict[str, nn.Parameter]:
        parts = {place: self._tree.part(place, name).parts for place in self._held[name].heads}
        heads = {f"{place}.{key}": parameter for place, own in parts.items() for key, parameter in own.items()}
        return heads | self._words.rows(name)

    def _mount(
        self,
        name: str,
        held: Held,
        parts: Mapping[str, Part],
        heads: Mapping[str, Head],
        rows: Mapping[str, Tensor],
        *,
        trainable: bool,
    ) -> Report:
        held.places = [place for place, part in parts.items() if not part.follows]
        held.heads = [place for place, head in heads.items() if not head.follows]
        for component, spec in held.specs.items():
            own = [place for place in held.places if place.partition(".")[0] == component]
            held.specs[component] = with_kernels(spec, {p.partition(".")[2]: self._tree.base(p) for p in own})
        norms = {place: Still() for part in held.specs for place in self._tree.batch_norms(part) if place not in parts}
        every: dict[str, Part] = {**norms, **parts, **heads}
        held.others = [place for place in every if place not in held.weighed]
        self._held[name] = held
        for place, part in every.items():
            self._tree.put(place, name, part.requires_grad_(trainable))
        self._words.put(name, rows, trainable)
        self._project()
        return held.report(self._parameters(name))

    def activate(self, weights: Weights) -> None:
        """Let these adapters act, at these weights, and no others; what trains does not change.

        Args:
            weights: a name, names, or name -> weight; a weight is a number, or a table of dotted prefixes
                ({"unet": 1.0, "unet.up_blocks": 0.4, "text_encoder": 0.0}) of which the longest wins, "*" for the rest.
                Trained words act wherever a prompt has them. A head answers whole at any weight but 0.

        Raises:
            AdapterError: an unknown adapter or prefix, a layer without a weight, a weight that is not finite, or
                adapters that cannot act together: they have different heads.
        """
        self._check_unmerged()
        table = read_weights(weights, self.names)
        for name, weight in table.items():
            layer_weights(name, weight, self._held[name].weighed)
        before = self._weights()
        self._weigh({name: table.get(name, 0.0) for name in self.names})
        try:
            self._tree.check()
        except AdapterError:
            self._weigh(before)
            raise

    def _weights(self) -> dict[str, LayerWeights]:
        return {name: held.weight for name, held in self._held.items()}

    def _weigh(self, weights: Mapping[str, LayerWeights]) -> None:
        for name, held in self._held.items():
            held.weight = weights.get(name, held.weight)
        self._project()

    @contextmanager
    def using(self, weights: Weights) -> Generator[None]:
        """Let these adapters act within the context; `using({})` is the base model, bit-equal."""
        before = self._weights()
        self.activate(weights)
        try:
            yield
        finally:
            self._weigh(before)

    def trainable(self, *names: str) -> dict[str, list[nn.Parameter]]:
        """The float32 parameters that train, by component, in the model's order; of all adapters where none is named.

        Raises:
            AdapterError: an unknown name.
        """
        for name in names:
            check_name(name, self.names)
        groups: dict[str, list[nn.Parameter]] = {}
        for name in names or self.names:
            for key, parameter in self.parameters(name).items():
                if parameter.requires_grad:
                    groups.setdefault(key.partition(".")[0], []).append(parameter)
        return {component: groups[component] for component in self.components if component in groups}

    def _project(self) -> None:
        self._tree.act({name: layer_weights(name, held.weight, held.weighed) for name, held in self._held.items()})

    def merge(self, weights: Weights | None = None) -> None:
        """Write ``W + Σ wᵢ ΔWᵢ`` into the base weights, and put the active head in the base's place.

        The module tree and `state_dict()` are a plain model's until `unmerge`; the originals are kept on the CPU.
        Trained words stay beside the embedding.

        Args:
            weights: as for `activate`; None means what is active now.

        Raises:
            AdapterError: merged already, a quantized layer is among them, or something that no weight can hold
                (prompts, a mean of heads); nothing is changed then.
        """
        self._check_unmerged()
        if weights is not None:
            self.activate(weights)
        self._tree.check()
        self._tree.refuse_prompts()
        layers = {place: layer for place, layer in self._tree.adapted.items() if layer.active}
        heads = {place: slot for place, slot in self._tree.heads.items() if slot.active}
        prepared = {place: merge_layer(place, layer) for place, layer in layers.items()}
        check_ties(prepared)
        written = {place: slot.written(place) for place, slot in heads.items()}
        used = {name for slot in (*layers.values(), *heads.values()) for name, _ in slot.active}
        for values, merged in prepared.values():
            merged.write(values)
        self._merged = [merged for _, merged in prepared.values()]
        self._merged_names = tuple(name for name in self._held if name in used)
        self._tree.hide(written)

    def unmerge(self) -> None:
        """Put the original weights back, bit for bit, and the adapters with the weights that they had.

        Raises:
            AdapterError: nothing is merged.
        """
        if self._merged is None:
            raise AdapterError("Nothing is merged.")
        for merged in self._merged:
            merged.restore()
        self._tree.show()
        self._merged, self._merged_names = None, ()

    def base_weights(self, places: Iterable[str]) -> dict[str, Tensor]:
        """Base weights at "component.path" and biases at "component.path.bias", as `to_lora(base=…)` takes them.

        Raises:
            AdapterError: they are shared out over processes.
        """
        found: dict[str, Tensor] = {}
        for place in places:
            refuse_sharded(place, self._tree.base(place), "what is asked of it")
            own = dict(self._tree.base(place).named_parameters(recurse=False))
            found |= {place: own["weight"].detach()} if "weight" in own else {}
            found |= {f"{place}.bias": own["bias"].detach()} if "bias" in own else {}
        return found

    def _of_today(self, adapter: Adapter) -> Adapter:
        return with_newest_names(adapter, self.family, self.components)

    def _check_free(self, name: str) -> None:
        self._check_unmerged()
        if not _NAME.fullmatch(name):
            raise AdapterError(f"Adapter name {name!r}: use letters, digits, '_', '+' and '-' only.")
        if name in self._held:
            raise AdapterError(f"An adapter is named '{name}' already; remove it first or choose another name.")

    def _check_unmerged(self) -> None:
        if self._merged is not None:
            raise AdapterError("Adapters are merged into the weights; call unmerge() first.")


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)

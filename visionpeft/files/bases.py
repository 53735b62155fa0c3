"""What the file formats ask of a base model: its family and its weights by canonical path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.methods import is_sharded
from visionpeft.models.base import Base
from visionpeft.models.family import Family, components_of
from visionpeft.models.family import family_of as find_family

_TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


def weights_of(base: Any) -> Mapping[str, Tensor] | None:
    """Return "component.path" -> weight of every linear layer and convolution of a base, adapted or not.

    A base that is shared out over processes has none to look at: it is as if none were given.

    Args:
        base: a `Base`, a pipeline or model of a known family, such a mapping itself, or None.

    Raises:
        BaseModelError: a model of no known family.
    """
    if base is None:
        return None
    if isinstance(base, Mapping):
        return _Layers(cast(Mapping[str, Tensor], base))
    pipeline = base.pipeline if isinstance(base, Base) else base
    if _is_shared_out(pipeline):
        return None
    family, found = find_family(pipeline), dict[str, Tensor]()
    for component, module in components_of(pipeline).items():
        found |= _component_weights(family, component, module)
    return found


def biases_of(base: Any) -> Mapping[str, Tensor] | None:
    """Return "component.path" -> bias of the layers that have one; None where no base is given.

    Args:
        base: as for `weights_of`; of a mapping, what stands at "component.path.bias".
    """
    if base is None:
        return None
    if isinstance(base, Mapping):
        values = cast(Mapping[str, Tensor], base)
        return {name.removesuffix(".bias"): values[name] for name in values if name.endswith(".bias")}
    pipeline = base.pipeline if isinstance(base, Base) else base
    if _is_shared_out(pipeline):
        return None
    family, found = find_family(pipeline), dict[str, Tensor]()
    for component, module in components_of(pipeline).items():
        for path, layer in _own_layers(family, component, module):
            bias: Any = getattr(layer, "bias", None)
            found |= {} if bias is None else {f"{component}.{path}": bias.detach()}
    return found


def _is_shared_out(pipeline: Any) -> bool:
    return any(is_sharded(layer) for model in components_of(pipeline).values() for layer in model.modules())


class _Layers(Mapping[str, Tensor]):
    """A mapping of weights and biases without the biases; what is read from the disk when asked for stays there."""

    def __init__(self, inner: Mapping[str, Tensor]) -> None:
        self._inner = inner
        self._names = dict.fromkeys(name for name in inner if not name.endswith(".bias"))

    def __getitem__(self, place: str) -> Tensor:
        return self._inner[place]

    def __contains__(self, place: object) -> bool:
        return place in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _component_weights(family: Family, component: str, module: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, layer in _own_layers(family, component, module):
        weight: Any = layer.weight
        found[f"{component}.{path}"] = weight.detach()
    return found


def _own_layers(family: Family, component: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The plain layers; where adapters are attached, a layer stands under its own path with ``.base`` behind."""
    layers = family.layers(component, module)
    adapted = {path.removesuffix(".base") for path in layers if path.endswith(".base")}
    for path, actual in layers.items():
        plain = path.removesuffix(".base")
        if not any(parent in adapted for parent in _parents(plain)):  # what is inside an adapter is not the base's
            yield plain, module.get_submodule(actual)


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def facts_of_base(base: Any) -> dict[str, str]:
    """Return the ModelSpec entries that a ``Base`` tells: what it predicts, its native size; {} for anything else."""
    if not isinstance(base, Base):
        return {}
    return {"prediction_type": base.prediction_type, "resolution": f"{base.size}x{base.size}"}


def family_of(adapter: Adapter, base: Any = None) -> str:
    """Return "sd1", "sd2", "sdxl" or another family's name: from the base, the adapter's metadata, or its widths."""
    if isinstance(base, Base):
        return base.family.name
    if base is not None and not isinstance(base, Mapping):
        return find_family(base).name
    if adapter.metadata.family:
        return adapter.metadata.family
    if "text_encoder_2" in adapter.specs:
        return "sdxl"
    downs = {name: t for name, t in adapter.tensors.items() if name.endswith("attn2.to_k.lora_A.weight")}
    widths = {tensor.shape[1] for tensor in downs.values()}
    return _TEXT_WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""

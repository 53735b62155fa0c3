"""Heads: whole trainable modules that an adapter puts in place of the base's own, a classifier for its labels.

Which head answers follows from activation: that of the one active adapter which has one. Several equal heads with the
same labels answer with the mean of their outputs by weight; none leaves the base's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft.adapters.slots import Active, Part, Slot, plain
from visionpeft.errors import AdapterError


class HeadSlot(Slot):
    """The place of a head: the base's own and those of the adapters."""

    order = 2

    def check(self) -> None:
        """Raise AdapterError where the active heads cannot answer together."""
        if len(self.active) < 2:
            return
        names = [name for name, _ in self.active]
        first = self.branch(names[0])
        different = next((name for name in names[1:] if not first.alike(self.branch(name))), "")
        if different:
            raise AdapterError(
                f"The adapters '{names[0]}' and '{different}' are both active and have different heads at"
                f" '{first.place}' ({first}, {self.branch(different)}): activate one, as in activate('{different}')."
            )
        if sum(weight for _, weight in self.active) == 0:
            raise AdapterError(f"The weights of the heads at '{first.place}' sum to 0, so they have no mean.")

    def of_base(self, name: str) -> Any:
        """An attribute of the head that answers."""
        return getattr(self.branch(self.active[0][0]).module, name) if self.active else super().of_base(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the base's head says, or the active one, or the mean of several by weight."""
        if not self.active:
            return self.base(*args, **kwargs)
        if len(self.active) == 1:
            return self.branch(self.active[0][0])(*args, **kwargs)
        self.check()
        return sum(share * self.branch(name)(*args, **kwargs) for name, share in shares(self.active))

    def written(self, place: str) -> nn.Module:
        """The head that answers, as a plain module in the base's type.

        Raises:
            AdapterError: a mean of heads that are not linear.
        """
        self.check()
        heads = [self.branch(name).module for name, _ in self.active]
        if len(heads) > 1 and not isinstance(heads[0], nn.Linear):
            raise AdapterError(f"The mean of several heads at '{place}' is no module: activate one of them and merge.")
        module = copy.deepcopy(heads[0]).requires_grad_(False)
        for name, parameter in module.named_parameters():
            values = [share * self.branch(who).parts[name].detach() for who, share in shares(self.active)]
            parameter.data = torch.stack(values).sum(0).to(_type_of(self.base, parameter.dtype))
        return module.train(self.training)


class Head(Part):
    """One adapter's head at one place; its parameters are float32.

    Args:
        place: "component.path".
        module: the head.
        labels: what its outputs mean; heads with other labels are never averaged.
        kind_of: the type that the base computes in, which its outputs take without autocast.
        follows: the place that it belongs to, where the base has one head in several places.
    """

    kind = HeadSlot

    def __init__(self, place: str, module: nn.Module, labels: object, kind_of: torch.dtype, follows: str = "") -> None:
        super().__init__({})
        self.place, self.module, self.labels, self.follows = place, module, labels, follows
        self._type = kind_of

    @property
    def parts(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return dict(self.module.named_parameters())

    @property
    def whole(self) -> dict[str, Tensor]:
        """What is saved, by name."""
        return dict(self.parts)

    def alike(self, other: Head) -> bool:
        """Whether another head has the same shapes and labels, so that a mean of both means something."""
        mine, theirs = ({name: p.shape for name, p in head.parts.items()} for head in (self, other))
        return mine == theirs and self.labels == other.labels

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output, computed in float32 unless autocast decides."""
        if torch.is_autocast_enabled(x.device.type):
            return self.module(x)
        return self.module(x.float() if x.is_floating_point() else x).to(self._type)

    def __str__(self) -> str:
        return f"{len(self.labels)} labels" if isinstance(self.labels, list | tuple) else "no labels"

    def _apply(self, fn: Any, recurse: bool = True) -> Part:
        self._type = fn(torch.empty(0, dtype=self._type)).dtype
        return super()._apply(fn, recurse)


def shares(active: Active) -> Iterable[tuple[str, float]]:
    """The weights of active heads as shares of their sum."""
    total = sum(weight for _, weight in active)
    return [(name, weight / total) for name, weight in active]


def rebuilt(place: str, base: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the head whose parameters these are: a linear layer, or the base's own structure in other sizes.

    Args:
        place: "component.path", for messages.
        base: the base's head there.
        tensors: the head's parameters by name; they are copied to float32.

    Raises:
        AdapterError: they are the parameters of neither.
    """
    values = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}
    module = _linear(values) if _is_linear(base, values) else _without_slots(copy.deepcopy(plain(base)))
    names = {name for name, _ in module.named_parameters()}
    if odd := sorted(names ^ set(values)):
        raise AdapterError(
            f"The head at '{place}': '{odd[0]}' is only in one of it and the base's head; a head is a linear layer, or"
            f" of the structure that the base's has ({', '.join(sorted(names))})."
        )
    for name, value in values.items():
        _fill(place, module, name, value)
    return module


def tensors_of(place: str, head: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a head that is to train, by name, where it can be rebuilt from them.

    Raises:
        AdapterError: it has none, has buffers, or a file could not give it back.
    """
    tensors = {name: parameter.detach() for name, parameter in head.named_parameters()}
    if not tensors or any(True for _ in head.buffers()):
        what = "buffers" if tensors else "no parameters"
        raise AdapterError(f"The head for '{place}' has {what}; a head is parameters alone, nn.Linear for example.")
    if repr(again := rebuilt(place, base, tensors)) != repr(head):
        raise AdapterError(f"The head for '{place}' is {head}, of which a file would make {again}; use the latter.")
    return tensors


def _is_linear(base: nn.Module, values: Mapping[str, Tensor]) -> bool:
    weight = values.get("weight")
    flat = weight is not None and weight.ndim == 2 and set(values) <= {"weight", "bias"}
    return flat and (isinstance(base, nn.Linear) or not any(True for _ in base.parameters()))


def _linear(values: Mapping[str, Tensor]) -> nn.Module:
    outputs, inputs = values["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in values)


def _without_slots(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _without_slots(plain(child)))
    return module


def _fill(place: str, module: nn.Module, name: str, value: Tensor) -> None:
    path, _, own = name.rpartition(".")
    layer = module.get_submodule(path)
    old = layer.get_parameter(own)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(value)
        layer.in_features = value.shape[1] if value.ndim == 2 else layer.in_features
    elif isinstance(layer, nn.Embedding):
        last = layer.padding_idx == layer.num_embeddings - 1
        layer.num_embeddings, layer.embedding_dim = value.shape
        layer.padding_idx = len(value) - 1 if last else layer.padding_idx
    elif old.shape != value.shape:
        raise AdapterError(f"The head at '{place}': '{name}' is {tuple(value.shape)} instead of {tuple(old.shape)}.")
    if old.ndim != value.ndim:
        raise AdapterError(f"The head at '{place}': '{name}' of shape {tuple(value.shape)} fits no {layer}.")
    setattr(layer, own, nn.Parameter(value))


def _type_of(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    parameter = next(module.parameters(), None)
    return otherwise if parameter is None else parameter.dtype

"""What stands in a model's module tree: a slot for each adapted module, and in it one part for each adapter.

A slot takes its module's place, does what the module does, and answers for its attributes. Which parts act, and how
strongly, is `active`, which the manager sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

SLOT = "adapter_"  # a module table has attributes of its own ("keys", "items"); with a prefix every name is free

Active = tuple[tuple[str, float], ...]
Move = Callable[[Tensor], Tensor]


def keeping_float32(fn: Move) -> Move:
    """Do to a tensor what `model.to(...)` does, but keep its type: masters stay float32 in a bfloat16 model."""

    def move(tensor: Tensor) -> Tensor:
        probe = fn(tensor.new_empty(0))
        return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

    return move


class Part(nn.Module):
    """One adapter's float32 parameters at one place.

    Attributes:
        kind: the slot that it goes into.
        follows: the place whose weight counts; empty means its own.
    """

    kind: ClassVar[type[Slot]]
    follows: str = ""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = tuple(parts)
        for name, part in parts.items():
            self.register_parameter(attribute(name), nn.Parameter(part.detach().to(torch.float32).clone()))

    @property
    def parts(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: getattr(self, attribute(name)) for name in self._names}

    @property
    def whole(self) -> dict[str, Tensor]:
        """What is saved, by name."""
        return dict(self.parts)

    def stand_on(self, base: nn.Module) -> None:
        """Belong to another module from now on, which does the same as the one before."""

    def _apply(self, fn: Move, recurse: bool = True) -> Part:
        return super()._apply(keeping_float32(fn), recurse)


class Slot(nn.Module):
    """A module with the parts of its adapters; `active` is (name, weight) in order."""

    order: ClassVar[int] = 0  # where a module has slots of several kinds, the smaller is further in

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.branches = nn.ModuleDict()
        self.active: Active = ()
        self.training = base.training

    def __getattr__(self, name: str) -> Any:
        """What the slot does not have is the module's: its weight, its children."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "base" not in modules:
                raise
        return self.of_base(name)

    def of_base(self, name: str) -> Any:
        """An attribute of the module in the slot."""
        return getattr(self._modules["base"], name)

    def branch(self, name: str) -> Any:
        """The part of an adapter."""
        return self.branches[SLOT + name]

    def has(self, name: str) -> bool:
        """Whether an adapter has a part here."""
        return SLOT + name in self.branches

    def put(self, name: str, part: Part) -> None:
        """Add an adapter's part."""
        self.branches[SLOT + name] = part.train(self.training)

    def drop(self, name: str) -> None:
        """Remove an adapter's part."""
        del self.branches[SLOT + name]

    def act(self, active: Active) -> None:
        """Let these parts act, at these weights, and no others."""
        self.active = active

    def check(self) -> None:
        """Raise AdapterError where the active parts cannot act together."""

    def exchange(self, base: nn.Module) -> None:
        """Put another module that does the same into the slot."""
        self.base = base
        for part in self.branches.values():
            if isinstance(part, Part):
                part.stand_on(plain(base))

    def follow(self) -> None:
        """Take over the mode and the device of the module in the slot."""
        self.training = self.base.training
        self.branches.train(self.training)
        parameter = next(self.base.parameters(), None)
        if parameter is not None:
            self.branches.to(parameter.device)


def plain(module: nn.Module) -> nn.Module:
    """The module itself, out of its slots."""
    while isinstance(module, Slot):
        module = module.base
    return module


def attribute(name: str) -> str:
    """A parameter's name as an attribute; attributes have no dots."""
    return name.replace(".", "_")

"""Where a base's models are: on the device while they are used, in main memory otherwise. One owner of that state."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from visionpeft.compute.memory import Room, device_memory
from visionpeft.errors import VisionPeftError

_EASY = 0.25
"""Share of the free memory up to which models leave room enough for whatever they compute."""

_SCARCE = ("cuda",)
"""Kinds of devices that models leave when they are not in use."""

_AWAY = torch.device("cpu")
Mover = Callable[[torch.device], None]


class Residence:
    """Brings models to the device for a phase of work and takes them away for the next.

    A GPU holds those that a phase uses and those that are settled. Elsewhere all stay and nothing is ever moved.

    Args:
        models: by name, wherever they are.
        device: where they compute.
        movers: how a model is moved, where not all of it moves, by name.
        moves: whether models come and go; None: on a GPU.

    Attributes:
        moves: whether they do.
        tight: whether all of them would take more than a quarter of its free memory: work is done in small parts.
        here: names of the models on the device.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], device: torch.device, movers: Mapping[str, Mover] | None = None, *,
        moves: bool | None = None,
    ) -> None:  # fmt: skip
        self.device = device
        self._models, self._movers = dict(models), dict(movers or {})
        self._settled: set[str] = set()
        self._used: list[str] = []
        room = free_memory(device)
        self.moves = device.type in _SCARCE if moves is None else moves
        self.tight = room is not None and self.bytes > _EASY * room
        self.here: set[str] = set()
        if not self.moves:
            self.settle(*models)

    @property
    def bytes(self) -> int:
        """Bytes of all models' weights, wherever they are."""
        return sum(t.numel() * t.element_size() for model in self._models.values() for t in _tensors(model))

    @contextmanager
    def on_device(self, *names: str) -> Generator[None]:
        """Have these models on the device while the context lasts, beside those that are settled or in use around it.

        Where models move, these leave at its end, and the memory that they and their work needed is given back.
        """
        outer = list(self._used)
        self._used += names
        try:
            self._arrange()
            yield
        finally:
            self._used = outer
            self._leave()

    def settle(self, *names: str) -> None:
        """Have these models on the device from now on: their weights' places do not change any more."""
        self._settled |= set(names)
        self._arrange()

    def _arrange(self) -> None:
        wanted = self._settled | set(self._used)
        unknown = wanted - set(self._models)
        if unknown:
            raise VisionPeftError(f"There is no model '{min(unknown)}' here; there are {', '.join(self._models)}.")
        for name in sorted(wanted - self.here):
            self._move(name, self.device)
            self.here.add(name)

    def _leave(self) -> None:
        idle = self.here - self._settled - set(self._used)
        for name in sorted(idle):
            self._move(name, _AWAY)
            self.here.discard(name)
        if idle and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _move(self, name: str, device: torch.device) -> None:
        move = self._movers.get(name)
        if move is None:
            nn.Module.to(self._models[name], device=device)
        else:
            move(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes of a CUDA device that this process may still take, its own limit counted; None for other devices.

    What torch holds already does not count, free or not: part of it may belong to recorded steps.
    """
    found: Room | None = device_memory(device)
    if found is None:
        return None
    limit = int(torch.cuda.get_per_process_memory_fraction(device.index) * found.total)
    return max(0, min(found.free, limit - torch.cuda.memory_reserved(device)))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]

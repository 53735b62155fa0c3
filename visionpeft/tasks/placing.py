"""A task's models on the device, as thriftily as the run's settings ask: the one place where the levers are pulled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from visionpeft.compute.lean import Lean
from visionpeft.compute.memory import amount
from visionpeft.compute.residence import Mover, Residence, free_memory
from visionpeft.training.task import Context


def place(models: Mapping[str, nn.Module], trained: Mapping[str, nn.Module], context: Context,
          dtype: torch.dtype | None) -> Residence:  # fmt: skip
    """Apply a run's levers to the models in training, and return what moves all of them to the run's device.

    Where they take little of its memory, all of them are there already. Otherwise they come for what they are needed
    for; those in training are to be settled before the first step.

    Args:
        models: all of the base, by name.
        trained: those of them that the loss goes through, by name.
        context: of the run.
        dtype: of the frozen weights; adapters' masters stay float32. None leaves each as it is.

    Raises:
        ConfigError: a lever that these models do not have.
    """
    movers: dict[str, Mover] = {}
    for name, model in models.items():
        nn.Module.to(model, dtype=dtype)  # diffusers' own `to` warns of every change of type
        if name in trained:
            lean = Lean(model, context.device, context.thrift)
            movers[name] = lean.move
            if lean.choice.any:
                context.progress.say(f"{name}: {lean}.")
    places = Residence(models, context.device, movers)
    if places.moves and len(models) > 1:
        free = amount(free_memory(context.device) or 0)
        context.progress.say(
            f"the base's models take {amount(places.bytes)} of {free} free on the GPU: each is there while needed."
        )
    return places

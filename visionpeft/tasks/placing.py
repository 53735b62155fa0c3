"""A task's models on the device, as thriftily as the run's settings ask: the one place where the levers are pulled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from visionpeft.adapters.slots import Slot
from visionpeft.compute.fused import fault
from visionpeft.compute.fused_unet import fuse_unet
from visionpeft.compute.layouts import channels_last
from visionpeft.compute.lean import Lean
from visionpeft.compute.memory import amount
from visionpeft.compute.quantized import quantize
from visionpeft.compute.residence import Mover, Residence, free_memory
from visionpeft.compute.sharding import Sharding
from visionpeft.errors import ConfigError
from visionpeft.models.joined_attention import join_attention
from visionpeft.training.task import Context

_APART = ("vae",)
"""Models that each process runs when it likes, so that their weights are never shared out; they are small."""


def place(models: Mapping[str, nn.Module], trained: Mapping[str, nn.Module], context: Context,
          dtype: torch.dtype | None) -> Residence:  # fmt: skip
    """Apply a run's levers to the models in training, and return what moves all of them to the run's device.

    On a GPU they come for what they are needed for; those in training are to be settled before the first step.

    Where the run shares its base out over the processes, no model is ever whole on the device.

    Args:
        models: all of the base, by name.
        trained: those of them that the loss goes through, by name.
        context: of the run.
        dtype: of the frozen weights; adapters' masters stay float32. None leaves each as it is.

    Raises:
        ConfigError: a lever that these models do not have.
    """
    if context.thrift.memory.base != "auto":
        _keep_in_few_bits(trained, context, dtype)
    if context.sharding is not None:
        _share_out(context.sharding, [model for name, model in models.items() if name not in _APART], context, dtype)
    movers: dict[str, Mover] = {}
    for name, model in models.items():
        nn.Module.to(model, dtype=dtype)  # diffusers' own `to` warns of every change of type
        if context.device.type == "cuda" and context.sharding is None and isinstance(model, ModelMixin):
            channels_last(model)
        if name in trained:
            fuse(model, context)
            lean = Lean(model, context.device, context.thrift)
            movers[name] = lean.move
            if lean.choice.any:
                context.progress.say(f"{name}: {lean}.")
    places = Residence(models, context.device, movers, moves=None if context.sharding is None else False)
    if places.tight and len(models) > 1:
        free = amount(free_memory(context.device) or 0)
        context.progress.say(
            f"the base's models take {amount(places.bytes)} of {free} free on the GPU: pictures are made one at a time."
        )
    return places


def fuse(model: nn.Module, context: Context) -> None:
    """Let a UNet's blocks compute in fewer operations, where there are kernels for them; before levers are pulled."""
    if context.device.type != "cuda" or context.sharding is not None or not isinstance(model, UNet2DConditionModel):
        return
    if reason := fault(context.device):
        context.progress.say(f"norms and gates are not fused, which makes steps slower: {reason}")
    else:
        fuse_unet(model)


def join_products(model: nn.Module, context: Context) -> None:
    """Join products of a model that read the same input, where its weights are on a GPU and stay where they are."""
    if context.device.type == "cuda" and context.sharding is None and not context.thrift.memory.stream:
        join_attention(model)


def _share_out(sharding: Sharding, models: list[nn.Module], context: Context, dtype: torch.dtype | None) -> None:
    if context.thrift.memory.stream:
        raise ConfigError(
            "train.memory.stream keeps blocks in main memory and train.shard on other GPUs: set stream to 0, or shard"
            " to off."
        )
    done = [sharding.shard(model, dtype) for model in models]
    blocks, whole, here = (sum(getattr(one, name) for one in done) for name in ("blocks", "whole", "here"))
    context.progress.say(
        f"The base is shared out over {sharding.world} processes: {blocks} blocks of {amount(whole)}, {amount(here)} on"
        f" each; {amount(sum(one.outside for one in done))} outside of blocks are on all."
    )


def _keep_in_few_bits(trained: Mapping[str, nn.Module], context: Context, dtype: torch.dtype | None) -> None:
    """Code what every step goes through; a text encoder without an adapter works once, and stays as it is."""
    code = context.thrift.memory.base
    adapted = [model for model in trained.values() if any(isinstance(part, Slot) for part in model.modules())]
    context.progress.say(quantize(adapted, code, context.device, dtype).line(code))

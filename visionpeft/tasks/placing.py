"""A task's models on the device, as thriftily as the run's settings ask: the one place where the levers are pulled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from visionpeft.compute.layouts import channels_last
from visionpeft.models.joined_attention import join_attention
from visionpeft.tasks.recompute import checkpoint_gradients
from visionpeft.training.task import Context


def place(models: Mapping[str, nn.Module], trained: Mapping[str, nn.Module], context: Context,
          dtype: torch.dtype | None) -> None:  # fmt: skip
    """Move models to the run's device and apply its levers to those in training.

    Args:
        models: all of the base, by name.
        trained: those of them that the loss goes through, by name.
        context: of the run.
        dtype: of the frozen weights; adapters' masters stay float32. None leaves each as it is.

    Raises:
        ConfigError: a lever that these models do not have.
    """
    for model in models.values():
        nn.Module.to(model, device=context.device, dtype=dtype)  # diffusers' own `to` warns of every change of type
        if context.device.type == "cuda" and isinstance(model, ModelMixin):
            channels_last(model)
            join_attention(model)
    if context.thrift.recompute:
        for model in trained.values():
            checkpoint_gradients(model)

"""Less memory for more time: activations are computed again in the backward pass (arXiv:1604.06174)."""

from __future__ import annotations

from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from visionpeft.errors import ConfigError


def checkpoint_gradients(model: nn.Module) -> None:
    """Let the model recompute its activations.

    Raises:
        ConfigError: this kind of model cannot.
    """
    if isinstance(model, ModelMixin):
        model.enable_gradient_checkpointing()
        return
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    able = [part for part in parts if part.supports_gradient_checkpointing]
    if not able:
        raise ConfigError(
            f"train.gradient_checkpointing: a {type(model).__name__} cannot recompute its activations; set it to false."
        )
    able[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

"""Less memory for more time: activations of a vision model are computed again in the backward pass."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from visionpeft.errors import ConfigError


def checkpoint_gradients(model: nn.Module) -> None:
    """Let the model recompute its activations (arXiv:1604.06174).

    Raises:
        ConfigError: this kind of model cannot.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    able = [part for part in parts if part.supports_gradient_checkpointing]
    if not able:
        raise ConfigError(
            f"train.gradient_checkpointing: a {type(model).__name__} cannot recompute its activations; set it to false."
        )
    able[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

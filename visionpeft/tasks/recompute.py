"""Less memory for more time: activations of a model of transformers are computed again in the backward pass."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from visionpeft.errors import ConfigError


def checkpoint_gradients(model: nn.Module) -> str:
    """Let the model recompute its activations (arXiv:1604.06174).

    What dropout drew is drawn again from the generators' states, which cannot be asked for while a step is recorded.
    Where nothing is drawn they are left alone.

    Returns:
        Why steps cannot be recorded then; "" where they can.

    Raises:
        ConfigError: this kind of model cannot.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    able = [part for part in parts if part.supports_gradient_checkpointing]
    if not able:
        raise ConfigError(
            f"train.gradient_checkpointing: a {type(model).__name__} cannot recompute its activations; set it to false."
        )
    dropout = _drops(model)
    able[0].gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": bool(dropout)})
    return f"activations are computed again, and so is what {dropout} drew." if dropout else ""


def _drops(model: nn.Module) -> str:
    """What draws random numbers in a forward pass of training, by name; "" if nothing does."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if ("drop" in key or isinstance(module, nn.Dropout)) and isinstance(value, float) and value > 0:
                return f"'{key}' of '{path}'"
    return ""

"""Attention without masks, for exporters and recorded steps: in them transformers makes masks that hide nothing."""

from __future__ import annotations

from typing import Any

from torch import nn

UNMASKED = "visionpeft_unmasked"
"""Name of PyTorch's attention as one that transformers knows no masks for, and so makes none."""


def attend_unmasked(model: nn.Module) -> None:
    """Let a model attend without a mask that says what it does anyway.

    A picture's tokens attend to all, a decoder's to what came before: that is in the layers. A picture model's mask
    has the picture's tokens alone: prompts beside them would have no place in it.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(UNMASKED, sdpa_attention_forward)
    for part in model.modules():
        if hasattr(part, "set_attn_implementation"):
            whole: Any = part
            whole.set_attn_implementation(UNMASKED)

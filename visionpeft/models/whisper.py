"""Whisper: an encoder of sound and a decoder of text, for all sizes, English-only ones and Distil-Whisper."""

from __future__ import annotations

from typing import Any

from torch import nn

from visionpeft.models.family import Family, Targeting
from visionpeft.models.names import in_part

_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_ATTENTIONS = {
    "attention": r"\.\d+\.(self_attn|encoder_attn)\.",
    "self-attention": r"\.\d+\.self_attn\.",
    "cross-attention": r"\.\d+\.encoder_attn\.",
}
_KINDS = {
    **{name: f"{begin}({'|'.join(_PROJECTIONS.values())})$" for name, begin in _ATTENTIONS.items()},
    **{
        f"{name}.{projection}": f"{begin}{layer}$"
        for name, begin in _ATTENTIONS.items()
        for projection, layer in _PROJECTIONS.items()
    },
    "mlp": r"\.\d+\.fc[12]$",
    "conv": r"\.conv[12]$",
}
_PARTS = {part: rf"model\.{part}\." for part in ("encoder", "decoder")}


def _components(model: Any) -> dict[str, nn.Module] | None:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    whole = isinstance(model, nn.Module) and kind == "whisper" and hasattr(model, "proj_out")
    return {"model": model} if whole else None


WHISPER = Family(
    "whisper",
    {
        "model": Targeting(
            semantic={
                **_KINDS,
                **{part: f"^{begin}" for part, begin in _PARTS.items()},
                **{
                    f"{part}.{kind}": in_part(begin, pattern)
                    for part, begin in _PARTS.items()
                    for kind, pattern in _KINDS.items()
                },
            },
            head=r"^proj_out$",  # the transposed embedding of words
            fixed=r"^model\.encoder\.embed_positions\.",  # sinusoids
            decoder="model.decoder",
        )
    },
    _components,
)

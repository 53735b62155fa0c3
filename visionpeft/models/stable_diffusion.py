"""Stable Diffusion 1.x, 2.x and XL: a UNet that listens to one or two CLIP text encoders."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from visionpeft.models.family import Family, Rename, Targeting

UNET = Targeting(
    semantic={
        "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
        "attention.q": r"\.attn[12]\.to_q$",
        "attention.k": r"\.attn[12]\.to_k$",
        "attention.v": r"\.attn[12]\.to_v$",
        "attention.out": r"\.attn[12]\.to_out\.0$",
        "self-attention": r"\.attn1\.to_(q|k|v|out\.0)$",
        "cross-attention": r"\.attn2\.to_(q|k|v|out\.0)$",
        "mlp": r"\.ff\.net\.(0\.proj|2)$",
        "conv": r"(^conv_(in|out)|resnets\.\d+\.conv(1|2|_shortcut)|samplers\.0\.conv)$",
        "kohya": r"(^|\.)attentions\.\d+\.",
    }
)


def _flattened(encoder: nn.Module) -> tuple[Rename, ...]:
    # CLIPTextModel lost its inner `text_model` in transformers 5.6, CLIPTextModelWithProjection kept it: look at it
    return () if hasattr(encoder, "text_model") else ((r"^", "text_model."),)


CLIP_TEXT = Targeting(
    semantic={
        "attention": r"\.self_attn\.(q|k|v|out)_proj$",
        "attention.q": r"\.self_attn\.q_proj$",
        "attention.k": r"\.self_attn\.k_proj$",
        "attention.v": r"\.self_attn\.v_proj$",
        "attention.out": r"\.self_attn\.out_proj$",
        "self-attention": r"\.self_attn\.(q|k|v|out)_proj$",
        "mlp": r"\.mlp\.fc[12]$",
        "kohya": r"\.(self_attn|mlp)\.",
    },
    head=r"text_projection$",
    actual=_flattened,
)


def _parts_of(name: str) -> Callable[[Any], dict[str, nn.Module] | None]:
    def parts(pipeline: Any) -> dict[str, nn.Module] | None:
        if family_name(pipeline) != name:
            return None
        return {
            part: getattr(pipeline, part) for part in _COMPONENTS[name] if getattr(pipeline, part, None) is not None
        }

    return parts


def family_name(pipeline: Any) -> str | None:
    """Return "sd1", "sd2" or "sdxl" by what the pipeline's parts are; None for anything else.

    SDXL's UNet takes pooled text and time ids; SD 2.x is told from 1.x by the projections around its transformer
    blocks, linear there and 1×1 convolutions in 1.x, which holds at any size.
    """
    unet = getattr(pipeline, "unet", None)
    if unet is None or not hasattr(pipeline, "vae"):
        return None
    if getattr(unet.config, "addition_embed_type", None) == "text_time":
        return "sdxl"
    projections = [
        child for path, child in unet.named_modules() if re.search(r"attentions\.0\.proj_in(\.base)?$", path)
    ]
    return "sd2" if any(isinstance(child, nn.Linear) for child in projections) else "sd1"


_COMPONENTS = {
    "sd1": {"unet": UNET, "text_encoder": CLIP_TEXT},
    "sd2": {"unet": UNET, "text_encoder": CLIP_TEXT},
    "sdxl": {"unet": UNET, "text_encoder": CLIP_TEXT, "text_encoder_2": CLIP_TEXT},
}
SD1, SD2, SDXL = (Family(name, _COMPONENTS[name], _parts_of(name)) for name in _COMPONENTS)

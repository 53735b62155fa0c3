"""Vision transformers for image classification, under their old and new layer names."""

from __future__ import annotations

from typing import Any

from torch import nn

from visionpeft.models.family import Family, Rename, Targeting

_BEFORE_5_9: tuple[Rename, ...] = (
    (r"encoder\.layer\.(\d+)", r"layers.\1"),
    (r"attention\.attention\.(query|key|value)$", r"attention.\1"),
    (r"attention\.output\.dense$", "attention.o_proj"),
    (r"intermediate\.dense$", "mlp.fc1"),
    (r"output\.dense$", "mlp.fc2"),
    (r"\.query$", ".q_proj"),
    (r"\.key$", ".k_proj"),
    (r"\.value$", ".v_proj"),
)


def _renames(model: nn.Module) -> tuple[Rename, ...]:
    # transformers 5.9 renamed the layers: look at the model, not at the version
    old = any(path.endswith("attention.attention.query") for path, _ in model.named_modules())
    return _BEFORE_5_9 if old else ()


def _model(model: Any) -> dict[str, nn.Module] | None:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return {"model": model} if isinstance(model, nn.Module) and kind == "vit" else None


VIT = Family(
    "vit",
    {
        "model": Targeting(
            semantic={
                "attention": r"\.attention\.[qkvo]_proj$",
                "attention.q": r"\.attention\.q_proj$",
                "attention.k": r"\.attention\.k_proj$",
                "attention.v": r"\.attention\.v_proj$",
                "attention.out": r"\.attention\.o_proj$",
                "self-attention": r"\.attention\.[qkvo]_proj$",
                "mlp": r"\.mlp\.fc[12]$",
                "conv": r"patch_embeddings\.projection$",
            },
            head=r"(^|\.)(classifier|pooler\.dense)$",
            actual=_renames,
            token_layers=r"(^|\.)layers\.\d+$",  # noqa: S106 (no password)
        )
    },
    _model,
)

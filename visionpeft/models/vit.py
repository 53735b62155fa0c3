"""Plain vision transformers, where every layer passes the same tokens on: ViT, DeiT, BEiT, DINOv2, DINOv3, CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from visionpeft.models.divide import Divided
from visionpeft.models.family import Family, Rename, Sight, Targeting
from visionpeft.models.names import END, FLAT_LAYERS, SPLIT_ATTENTION, kinds

ATTENTION = ("attention", "attention.q", "attention.k", "attention.v", "attention.out", "self-attention")
_BEIT_BIAS: tuple[Rename, ...] = (
    (r"(\.\d+)\.attention\.attention\.relative_position_bias" + END, r"\1.relative_position_bias"),
)
_SWIGLU: tuple[Rename, ...] = ((r"\.mlp\.weights_out" + END, ".mlp.down_proj"),)
_GATED: tuple[Divided, ...] = ((r"\.mlp\.weights_in" + END, (".mlp.gate_proj", ".mlp.up_proj")),)
"""Before 5.18 the giant's gated layers were one matrix, the gate's rows first."""


def patch_size(model: nn.Module) -> int:
    """The side of a patch in pixels."""
    config: Any = model.config
    config = getattr(config, "vision_config", config)
    return int(config.patch_size[0] if isinstance(config.patch_size, list | tuple) else config.patch_size)


def model_of(*kinds: str) -> Callable[[Any], dict[str, nn.Module] | None]:
    """How a family recognises its models: by what their configuration calls itself, and that they read no text."""

    def components(model: Any) -> dict[str, nn.Module] | None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        mine = isinstance(model, nn.Module) and kind in kinds and not hasattr(model, "text_model")
        return {"model": model} if mine else None

    return components


def _registers(model: nn.Module) -> int:
    config: Any = model.config
    return 1 + int(getattr(config, "num_register_tokens", 0) or 0)


def _family(
    name: str,
    layers: str,
    *types: str,
    former: tuple[Rename, ...] = (),
    divided: tuple[Divided, ...] = (),
    prefix: Callable[[nn.Module], int] | None = lambda _: 1,
) -> Family:
    """A family by the path of its layers; without `prefix` its tokens cannot be added to."""
    targeting = Targeting(
        semantic=kinds((*ATTENTION, "mlp", "conv")),
        head=r"(^|\.)(classifier|cls_classifier|distillation_classifier|pooler\.dense|visual_projection)$|\.head\.",
        former=former,
        divided=divided,
        token_layers=rf"^{layers}\.\d+$" if prefix else r"(?!)",
        prefix_tokens=prefix or (lambda _: 1),
    )
    sight = Sight("classify", blocks=rf"{layers}\.\d+", step=patch_size)
    return Family(name, {"model": targeting}, model_of(*types or (name,)), sight)


VIT = _family("vit", r"vit\.layers", former=FLAT_LAYERS + SPLIT_ATTENTION)
DEIT = _family("deit", r"deit\.layers", former=FLAT_LAYERS + SPLIT_ATTENTION, prefix=lambda _: 2)
# BEiT adds to its attention a bias for each pair of places, which further tokens do not have
BEIT = _family("beit", r"beit\.layers", former=_BEIT_BIAS + FLAT_LAYERS + SPLIT_ATTENTION, prefix=None)
DINOV2 = _family(
    "dinov2", r"dinov2(_with_registers)?\.encoder\.layer", "dinov2", "dinov2_with_registers",
    former=SPLIT_ATTENTION + _SWIGLU, divided=_GATED, prefix=_registers,
)  # fmt: skip
DINOV3 = _family("dinov3", r"dinov3\.model\.layer", "dinov3_vit", prefix=_registers)
SIGLIP = _family(
    "siglip", r"vision_model\.encoder\.layers", "siglip", "siglip_vision_model", prefix=lambda _: 0
)  # fmt: skip
CLIP = _family("clip", r"vision_model\.encoder\.layers", "clip", "clip_vision_model")
TRANSFORMERS = (VIT, DEIT, BEIT, DINOV2, DINOV3, SIGLIP, CLIP)

"""Detectors that predict a set of boxes: DETR and its kin. Backbone, encoder and decoder can be chosen apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from visionpeft.models.family import Family, Rename, Sight, Targeting
from visionpeft.models.names import END, FLAT_LAYERS, KINDS, SPLIT_ATTENTION, in_part
from visionpeft.models.vit import model_of, patch_size

_CLASS_HEADS = r"(class_labels_classifier|class_embed|enc_score_head|enc_out_class_embed)"
_BOX_HEADS = r"(bbox_predictor|bbox_embed|enc_bbox_head|enc_out_bbox_embed|pre_bbox_head|lqe_layers)"
_HEADS = rf"^(model\.)?(decoder\.)?({_CLASS_HEADS}|{_BOX_HEADS})(\.|$)"
_PARTS = {
    "backbone": r"model\.backbone\.",
    "encoder": r"(model\.encoder|vit\.layers)\.",
    "decoder": rf"model\.decoder\.(?!{_CLASS_HEADS}|{_BOX_HEADS})",
}
_TRANSFORMER = "transformer", f"({_PARTS['encoder']}|{_PARTS['decoder']})"
_SEMANTIC = {
    **{kind: rf"^(?!{_HEADS[1:]}).*({pattern})" for kind, pattern in KINDS.items()},
    **{part: f"^{begin}" for part, begin in (*_PARTS.items(), _TRANSFORMER)},
    **{
        f"{part}.{kind}": in_part(begin, pattern)
        for part, begin in (*_PARTS.items(), _TRANSFORMER)
        for kind, pattern in KINDS.items()
    },
}
_BLOCKS = (
    r"(model\.backbone\..*?(stages\.\d+\.(layers|blocks)\.\d+|\.layers?\.\d+|layer\d\.\d+)"
    r"|model\.(encoder|decoder)\.(aifi\.\d+\.)?layers\.\d+|vit\.layers\.\d+)"
)
_BEFORE_5_5: tuple[Rename, ...] = (
    (r"backbone\.conv_encoder" + END, "backbone"),
    (r"(self_attn|encoder_attn)\.out_proj" + END, r"\1.o_proj"),
    (r"encoder\.encoder\.(\d+)\.layers" + END, r"encoder.aifi.\1.layers"),
    (r"\.(sa|ca)_(q|k)(content|pos|pos_sine)_proj" + END, r".\1.\2_\3_proj"),
    (r"\.(sa|ca)_qpos_sine_proj" + END, r".\1.q_pos_sine_proj"),
    (r"\.(sa|ca)_v_proj" + END, r".\1.v_proj"),
    (r"\.sa\.", ".self_attn."),
    (r"\.ca\.", ".encoder_attn."),
)
_FC: tuple[Rename, ...] = ((r"(layers\.\d+)\.(fc[12])" + END, r"\1.mlp.\2"),)
_FC_D_FINE: tuple[Rename, ...] = (
    (r"(layers\.\d+)\.fc1" + END, r"\1.mlp.layers.0"),
    (r"(layers\.\d+)\.fc2" + END, r"\1.mlp.layers.1"),
)
_DINOV2: tuple[Rename, ...] = SPLIT_ATTENTION
_YOLOS: tuple[Rename, ...] = (
    (r"encoder\.mid_position_embeddings" + END, "encoder.interpolation.mid_position_embeddings"),
    *FLAT_LAYERS,
    *SPLIT_ATTENTION,
)


def _matching(pattern: str) -> Callable[[nn.Module], Sequence[str]]:
    expression = re.compile(rf"^({pattern})$")

    def paths(model: nn.Module) -> list[str]:
        return [path for path, _ in model.named_modules(remove_duplicate=False) if expression.match(path)]

    return paths


def _deformable_heads(model: nn.Module) -> list[str]:
    """One for each decoder layer and, with two stages, the last one for the encoder's proposals."""
    config: Any = model.config
    layers = [f"class_embed.{layer}" for layer in range(config.decoder_layers)]
    return [*layers, *([f"model.decoder.class_embed.{config.decoder_layers}"] if config.two_stage else [])]


def _windows(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.backbone_config.patch_size) * int(getattr(config.backbone_config, "num_windows", 1))


def _stride(model: nn.Module) -> int:
    del model
    return 32


def _family(name: str, sight: Sight, former: tuple[Rename, ...] = ()) -> Family:
    targeting = Targeting(semantic={**_SEMANTIC, "boxes": sight.boxes}, head=_HEADS, former=former)
    return Family(name, {"model": targeting}, model_of(name), sight)


def _sight(heads: str | Callable[[nn.Module], Sequence[str]], boxes: str, **more: Any) -> Sight:
    paths = _matching(heads) if isinstance(heads, str) else heads
    return Sight("detect", paths, boxes, blocks=_BLOCKS, **more)


_RT_HEADS = r"model\.(decoder\.class_embed\.\d+|enc_score_head|denoising_class_embed)"
_RT_BOXES = r"^model\.(decoder\.(bbox_embed|pre_bbox_head)|enc_bbox_head)\."
_RT_DETR = _sight(_RT_HEADS, _RT_BOXES, step=_stride)
_RENAMED = _BEFORE_5_5 + _FC

DETR = _family(
    "detr", _sight("class_labels_classifier", r"^bbox_predictor\.", background=True, masked=True), _RENAMED
)  # fmt: skip
CONDITIONAL_DETR = _family(
    "conditional_detr", _sight("class_labels_classifier", r"^bbox_predictor\.", masked=True), _RENAMED
)  # fmt: skip
DEFORMABLE_DETR = _family(
    "deformable_detr", _sight(_deformable_heads, r"^(model\.decoder\.)?bbox_embed\.", masked=True), _RENAMED
)  # fmt: skip
RT_DETR = _family("rt_detr", _RT_DETR, _RENAMED)
RT_DETR_V2 = _family("rt_detr_v2", _RT_DETR, _RENAMED)
D_FINE = _family("d_fine", _RT_DETR, _BEFORE_5_5 + _FC_D_FINE)
YOLOS = _family(
    "yolos",
    _sight(r"class_labels_classifier\.layers\.2", r"^bbox_predictor\.", background=True, step=patch_size),
    _YOLOS,
)
RF_DETR = _family(
    "rf_detr",
    _sight(
        r"class_embed|model\.enc_out_class_embed\.\d+",
        r"^(bbox_embed|model\.enc_out_bbox_embed)\.",
        step=_windows,
        masked=True,
    ),
    _DINOV2,
)
DETECTORS = (DETR, CONDITIONAL_DETR, DEFORMABLE_DETR, RT_DETR, RT_DETR_V2, D_FINE, YOLOS, RF_DETR)

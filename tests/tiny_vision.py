"""Tiny, seeded classifiers and detectors of every vision family, with the real classes of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

LABELS = ("red", "green", "blue")
_NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: place for place, label in enumerate(LABELS)}}
_BLOCKS: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
_VIT = {**_BLOCKS, "intermediate_size": 64}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_RESNET = {"embedding_size": 8, "layer_type": "bottleneck", **_STAGES}
_DETR: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 6, "dropout": 0.0, "use_timm_backbone": False,
    "use_pretrained_backbone": False, "backbone": None,
}  # fmt: skip
_TWO_STAGES = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 6}
_RT_DETR: dict[str, Any] = {
    "d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32],
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "decoder_layers": 2, "num_queries": 6, "num_denoising": 4,
}  # fmt: skip


def _config(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


def _resnet(kind: str = "ResNetConfig", **more: Any) -> Any:
    return _config(kind, **_RESNET, **more)


def _clip(name: str) -> Any:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    return _config(name, text_config=text, vision_config=dict(_VIT), **_NAMES)


def _detr(kind: str, **more: Any) -> Any:
    backbone = _resnet(out_features=["stage4"]) if "Deformable" not in kind else _resnet(out_indices=[2, 3, 4])
    return _config(kind, backbone_config=backbone, **{**_DETR, **more}, **_NAMES)


def _rt_detr(kind: str) -> Any:
    return _config(kind, backbone_config=_resnet("RTDetrResNetConfig", out_indices=[2, 3, 4]), **_RT_DETR, **_NAMES)


def _d_fine() -> Any:
    backbone = _config(
        "HGNetV2Config", stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 24, 32], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 24, 32, 32], stage_num_blocks=[1, 1, 1, 1], stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True], stage_kernel_size=[3, 3, 5, 5], stage_numb_of_layers=[2, 2, 2, 2],
        embedding_size=8, hidden_sizes=[16, 24, 32, 32], depths=[1, 1, 1, 1], out_indices=[2, 3, 4],
    )  # fmt: skip
    settings = {**_RT_DETR, "encoder_in_channels": [24, 32, 32], "max_num_bins": 8, "decoder_n_points": [2, 2, 2]}
    return _config("DFineConfig", backbone_config=backbone, **settings, **_NAMES)


def _rf_detr() -> Any:
    backbone = _config(
        "RfDetrDinov2Config", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=32,
        patch_size=8, num_windows=1, out_indices=[1, 2], use_mask_token=False,
    )  # fmt: skip
    return _config(
        "RfDetrConfig", backbone_config=backbone, d_model=32, decoder_layers=2, decoder_ffn_dim=48, num_queries=6,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=2, decoder_n_points=2, group_detr=2, dropout=0.0,
        **_NAMES,
    )  # fmt: skip


CONFIGS: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "vit": ("ViTForImageClassification", lambda: _config("ViTConfig", **_VIT, **_NAMES)),
    "deit": ("DeiTForImageClassification", lambda: _config("DeiTConfig", **_VIT, **_NAMES)),
    "beit": (
        "BeitForImageClassification",
        lambda: _config(
            "BeitConfig", **_VIT, use_relative_position_bias=True, use_mean_pooling=True, out_indices=[0], **_NAMES
        ),
    ),
    "dinov2": ("Dinov2ForImageClassification", lambda: _config("Dinov2Config", **_BLOCKS, mlp_ratio=2, **_NAMES)),
    "dinov2_registers": (
        "Dinov2WithRegistersForImageClassification",
        lambda: _config("Dinov2WithRegistersConfig", **_BLOCKS, mlp_ratio=2, num_register_tokens=3, **_NAMES),
    ),
    "dinov2_swiglu": (
        "Dinov2ForImageClassification",
        lambda: _config("Dinov2Config", **_BLOCKS, mlp_ratio=2, use_swiglu_ffn=True, **_NAMES),
    ),
    "dinov3": ("DINOv3ViTModel", lambda: _config("DINOv3ViTConfig", **_VIT, num_register_tokens=2, **_NAMES)),
    "clip_tower": (
        "CLIPVisionModelWithProjection",
        lambda: _config("CLIPVisionConfig", **_VIT, projection_dim=24, **_NAMES),
    ),
    "swin": (
        "SwinForImageClassification",
        lambda: _config(
            "SwinConfig", image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4,
            mlp_ratio=2, **_NAMES,
        ),
    ),
    "siglip": ("SiglipForImageClassification", lambda: _clip("SiglipConfig")),
    "clip": ("CLIPForImageClassification", lambda: _clip("CLIPConfig")),
    "convnext": (
        "ConvNextForImageClassification",
        lambda: _config("ConvNextConfig", **_STAGES, image_size=32, **_NAMES),
    ),
    "resnet": ("ResNetForImageClassification", lambda: _resnet(**_NAMES)),
    "detr": ("DetrForObjectDetection", lambda: _detr("DetrConfig")),
    "conditional_detr": ("ConditionalDetrForObjectDetection", lambda: _detr("ConditionalDetrConfig")),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        lambda: _detr("DeformableDetrConfig", num_feature_levels=4, encoder_n_points=2, decoder_n_points=2),
    ),
    "deformable_detr_two_stage": (
        "DeformableDetrForObjectDetection",
        lambda: _detr("DeformableDetrConfig", num_feature_levels=4, **_TWO_STAGES),
    ),
    "rt_detr": ("RTDetrForObjectDetection", lambda: _rt_detr("RTDetrConfig")),
    "rt_detr_v2": ("RTDetrV2ForObjectDetection", lambda: _rt_detr("RTDetrV2Config")),
    "d_fine": ("DFineForObjectDetection", _d_fine),
    "yolos": (
        "YolosForObjectDetection",
        lambda: _config("YolosConfig", **{**_VIT, "image_size": [32, 32]}, num_detection_tokens=6, **_NAMES),
    ),
    "rf_detr": ("RfDetrForObjectDetection", _rf_detr),
}  # fmt: skip
DETECTORS = tuple(name for name, (kind, _) in CONFIGS.items() if kind.endswith("ForObjectDetection"))
CLASSIFIERS = tuple(name for name in CONFIGS if name not in DETECTORS)
TOWERS = ("dinov3", "clip_tower")


def available(name: str) -> bool:
    """Whether the installed transformers has the model."""
    return hasattr(transformers, CONFIGS[name][0])


def tiny_vision(name: str, seed: int = 0) -> nn.Module:
    """A tiny model of one row of ``CONFIGS`` with three labels, in evaluation mode."""
    kind, config = CONFIGS[name]
    settings = config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _lively(getattr(transformers, kind)(settings))
        return _classifier(model, settings.model_type).eval() if name in TOWERS else model.eval()


def _lively(model: nn.Module) -> nn.Module:
    """Let signals pass as in a trained network: no layer of zeros, no convolution that makes everything small."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.05)
    return model


def _classifier(tower: nn.Module, kind: str) -> nn.Module:
    from visionpeft.models import tower as ours

    return ours.TOWERS[kind][1](tower)


def sides_of(name: str) -> int:
    """The side of the pixels that a tiny model is tried with."""
    return 64 if name in DETECTORS else 32

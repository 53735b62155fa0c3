"""The detector: transformers' RT-DETR v2 in small."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

MEAN, STD = 0.5, 0.25
"""Of all three colours in 0..1, taken off and divided by before they enter the network."""

QUERIES = 100
PAIRS = 50
"""Denoising queries of a picture: so many disturbed copies of its boxes, and as many that are disturbed too much."""


def configuration(classes: list[str], *, frozen: bool) -> RTDetrV2Config:
    """The shape of the network; with ``frozen`` statistics in the backbone's batch norm, as it is shipped."""
    backbone = RTDetrResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return RTDetrV2Config(
        backbone_config=backbone, freeze_backbone_batch_norms=frozen, encoder_in_channels=[64, 128, 256],
        encoder_hidden_dim=128, encoder_ffn_dim=512, encoder_attention_heads=8, hidden_expansion=0.5, d_model=128,
        decoder_in_channels=[128, 128, 128], decoder_ffn_dim=512, decoder_layers=3, decoder_attention_heads=8,
        num_queries=QUERIES, num_denoising=PAIRS, id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )  # fmt: skip


def make_detector(classes: list[str]) -> RTDetrV2ForObjectDetection:
    """The network with weights to start training from.

    transformers starts linear layers and batch norm near zero, which suits weights that are loaded; here they start
    as in the paper's own code.
    """
    model = RTDetrV2ForObjectDetection(configuration(classes, frozen=False))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear) and module.weight.any():
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(model.model.enc_bbox_head.layers[-1].weight)
    return model


def normalize(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, height, width) in 0..1 as the network takes them."""
    return (pictures - MEAN) / STD

"""The detector: transformers' RT-DETR v2 in small, and its forward pass for training without a wait for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import inverse_sigmoid

MEAN, STD = 0.5, 0.25
"""Of all three colours in 0..1, taken off and divided by before they enter the network."""

QUERIES = 100
PAIRS = 50
"""Denoising queries of a picture: so many disturbed copies of its boxes, and as many that are disturbed too much."""

LABEL_NOISE, BOX_NOISE = 0.25, 1.0
"""Share of wrong labels, and the largest shift of a corner in half widths, among the denoising queries."""


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
        num_queries=QUERIES, num_denoising=2 * PAIRS, id2label=dict(enumerate(classes)),
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


def training_mode(model: RTDetrV2ForObjectDetection) -> None:
    """Let batch norm learn its statistics.

    The encoder's attention layers stay in evaluation, which changes nothing else: in training they ask the host whether
    their states are finite, which no recorded step can.
    """
    model.train()
    for intra_scale in model.model.encoder.aifi:
        intra_scale.layers.eval()


def normalize(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, height, width) in 0..1 as the network takes them."""
    return (pictures - MEAN) / STD


@dataclass(frozen=True)
class Noisy:
    """Denoising queries of a batch, positive ones first, then the too much disturbed ones.

    Attributes:
        labels: int64 (batch, 2 * PAIRS); where it is the number of classes there is no query.
        boxes: (batch, 2 * PAIRS, 4) in 0..1.
        which: int64 (batch, PAIRS), the thing that a positive query is to find.
        real: bool (batch, PAIRS), whether there is such a thing.
        visible: bool (batch, queries, queries), which query (row) sees which (column), matching queries last.
    """

    labels: Tensor
    boxes: Tensor
    which: Tensor
    real: Tensor
    visible: Tensor


def noisy_queries(boxes: Tensor, labels: Tensor, classes: int, pairs: int = PAIRS, queries: int = QUERIES) -> Noisy:
    """Contrastive denoising queries (DINO, Zhang et al. 2023) for things (batch, things) that come first in rows.

    Query ``i`` of a picture with n things belongs to thing ``i mod n`` and to group ``i // n``; groups do not see each
    other, and the matching queries see none of them.
    """
    number = (labels >= 0).sum(1, keepdim=True)
    slot = torch.arange(pairs, device=boxes.device)
    which, group = slot % number.clamp(min=1), slot // number.clamp(min=1)
    real = (number > 0).expand(-1, pairs)
    label, box = (
        labels.gather(1, which).repeat(1, 2),
        boxes.gather(1, which[..., None].expand(-1, -1, 4)).repeat(1, 2, 1),
    )
    wrong = torch.rand(label.shape, device=boxes.device) < LABEL_NOISE
    label = torch.where(wrong, torch.randint(classes, label.shape, device=boxes.device), label)
    label = label.masked_fill(~real.repeat(1, 2), classes)
    too_much = torch.arange(2 * pairs, device=boxes.device)[:, None] >= pairs
    shift = (torch.rand_like(box) + too_much) * (torch.randint_like(box, 2) * 2 - 1)
    corners = (to_corners(box) + BOX_NOISE * shift * box[..., 2:].repeat(1, 1, 2) / 2).clamp(0, 1)
    low, high = corners.split(2, dim=-1)
    # Numbers of groups; the matching queries are of one that all see and that sees itself alone.
    group = torch.cat([group, group, group.new_full((len(group), queries), -1)], dim=1)
    visible = (group[:, :, None] == group[:, None]) | (group == -1)[:, None]
    return Noisy(label, torch.cat([(low + high) / 2, high - low], dim=-1), which, real, visible)


def to_corners(boxes: Tensor) -> Tensor:
    """Centre, width and height to the corners' x and y: (..., 4)."""
    middle, size = boxes.split(2, dim=-1)
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)


@dataclass(frozen=True)
class Predictions:
    """What each layer says; the proposals of the encoder count as the first layer.

    Attributes:
        logits: (layers + 1, batch, queries, classes).
        boxes: (layers + 1, batch, queries, 4), centre, width and height in 0..1.
        noisy_logits, noisy_boxes: the same of the denoising queries, without the encoder's layer.
    """

    logits: Tensor
    boxes: Tensor
    noisy_logits: Tensor
    noisy_boxes: Tensor


def predict(model: RTDetrV2ForObjectDetection, pictures: Tensor, noisy: Noisy) -> Predictions:
    """The model's own forward pass, module by module, on pictures in 0..1: nothing in it waits for the device.

    On CUDA all convolutions work in bfloat16; the decoder, whose sigmoids must tell pixels apart, in float32.
    """
    core = model.model
    maps = feature_maps(model, normalize(pictures))
    shapes = [tuple(found.shape[-2:]) for found in maps]
    memory = torch.cat([found.flatten(2).transpose(1, 2) for found in maps], dim=1)
    anchors, usable = core.generate_anchors(tuple(shapes), device=memory.device, dtype=memory.dtype)
    states = core.enc_output(usable * memory)
    logits, raw = core.enc_score_head(states), core.enc_bbox_head(states) + anchors
    best = logits.detach().amax(-1).topk(QUERIES, dim=1).indices[..., None]
    logits, raw = (value.gather(1, best.expand(-1, -1, value.shape[-1])) for value in (logits, raw))
    queries = states.gather(1, best.expand(-1, -1, states.shape[-1])).detach()
    unseen = torch.zeros_like(noisy.visible, dtype=memory.dtype).masked_fill(~noisy.visible, -torch.inf)[:, None]
    decoded = core.decoder(
        inputs_embeds=torch.cat([_chosen(core.denoising_class_embed.weight, noisy.labels), queries], dim=1),
        encoder_hidden_states=memory,
        encoder_attention_mask=unseen,
        reference_points=torch.cat([inverse_sigmoid(noisy.boxes), raw.detach()], dim=1),
        spatial_shapes=torch.tensor(shapes),  # on the host, where it is only compared
        spatial_shapes_list=shapes,
    )
    split = [noisy.labels.shape[1], QUERIES]
    noisy_logits, found_logits = decoded.intermediate_logits.transpose(0, 1).split(split, dim=2)
    noisy_boxes, found_boxes = decoded.intermediate_reference_points.transpose(0, 1).split(split, dim=2)
    logits, boxes = torch.cat([logits[None], found_logits]), torch.cat([F.sigmoid(raw)[None], found_boxes])
    return Predictions(logits, boxes, noisy_logits, noisy_boxes)


def _chosen(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table as a product, whose gradient takes no sorting of the rows."""
    return (rows[..., None] == torch.arange(len(table), device=rows.device)).to(table.dtype) @ table


def feature_maps(model: RTDetrV2ForObjectDetection, pixels: Tensor) -> list[Tensor]:
    """What the decoder attends to: float32 (batch, width, height / stride, width / stride) at strides 8, 16 and 32."""
    core = model.model
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        maps = core.backbone.model(pixels).feature_maps
        maps = [project(found) for project, found in zip(core.encoder_input_proj, maps, strict=True)]
        maps = core.encoder(maps).last_hidden_state
        maps = [project(found) for project, found in zip(core.decoder_input_proj, maps, strict=True)]
    return [found.float() for found in maps]

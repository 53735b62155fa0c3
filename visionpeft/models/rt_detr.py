"""RT-DETR in training, versions 1 and 2: forward pass and loss without a wait for the host, so that they are recorded.

transformers counts the boxes of each picture on the host, solves the matching there, and asks the device whether its
states are finite. Here targets are padded, an auction on the device matches them, and nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionpeft.models.denoising import CHANCES, Noise, Noisy, noisy_queries
from visionpeft.models.matching import Targets, Weights, auction, costs
from visionpeft.models.set_loss import SetLoss, set_loss

_EPS = 1e-5
"""Of the inverse sigmoid."""


@dataclass(frozen=True)
class Predictions:
    """What each layer says; the proposals of the encoder count as the first layer.

    Attributes:
        logits: [L + 1, N, Q, C].
        boxes: [L + 1, N, Q, 4], (centre x, centre y, width, height) as shares.
        noisy_logits: the same of the denoising queries, without the encoder's layer.
        noisy_boxes: their boxes.
    """

    logits: Tensor
    boxes: Tensor
    noisy_logits: Tensor
    noisy_boxes: Tensor


def trains_on_the_device(model: nn.Module) -> bool:
    """Return whether a detector is an RT-DETR whose configuration this file follows."""
    config: Any = model.config
    if config.model_type not in ("rt_detr", "rt_detr_v2"):
        return False
    plain = not config.learn_initial_query and config.num_feature_levels == len(config.encoder_in_channels)
    no_dropout = not any((config.dropout, config.attention_dropout, config.activation_dropout))
    return bool(plain and no_dropout and config.auxiliary_loss and config.num_denoising)


def rt_detr_loss(
    model: nn.Module, pixels: Tensor, targets: Targets, uniform: Callable[[tuple[int, ...]], Tensor]
) -> tuple[SetLoss, SetLoss, Weights]:
    """Return the losses of matched and of denoising queries, each summed over layers and things, and their weights.

    The denoising losses are scaled to the number of things, as if each had one query.

    Args:
        model: the detector.
        pixels: [N, 3, H, W], normalised.
        targets: of the batch.
        uniform: random numbers in [0, 1) for each picture, [N, *shape].
    """
    config: Any = model.config
    core: Any = model.model
    classes = len(core.denoising_class_embed.weight) - 1
    noise = Noise(config.label_noise_ratio / 2, config.box_noise_scale)
    chances = uniform((2 * config.num_denoising, CHANCES))
    noisy = noisy_queries(targets, classes, config.num_queries, noise, chances)
    return losses_of(predict(model, pixels, noisy), noisy, targets, config)


def losses_of(found: Predictions, noisy: Noisy, targets: Targets, config: Any) -> tuple[SetLoss, SetLoss, Weights]:
    """Return the losses of what was predicted; see ``rt_detr_loss``."""
    wanted = targets.labels >= 0
    layers, batch = found.logits.shape[:2]
    asked = Weights(config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost)
    cost = costs(found.logits, found.boxes, targets, asked)
    query, has = (value.view(layers, batch, -1) for value in auction(cost.flatten(0, 1), wanted.repeat(layers, 1)))
    matched = set_loss(found.logits, found.boxes, targets, query, has)
    weights = Weights(config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou)
    return matched, _denoising(found, noisy, targets), weights


def _denoising(found: Predictions, noisy: Noisy, targets: Targets) -> SetLoss:
    meant = Targets(
        targets.boxes.gather(1, noisy.which[..., None].expand(-1, -1, 4)), targets.labels.gather(1, noisy.which)
    )
    layers, batch, pairs = len(found.noisy_logits), *noisy.which.shape
    slot = torch.arange(pairs, device=noisy.which.device).expand(layers, batch, -1)
    things = (targets.labels >= 0).sum(1, keepdim=True)  # picture by picture, so that a batch can be split anyhow
    worth = noisy.real[:, :1] * things / pairs
    return set_loss(found.noisy_logits, found.noisy_boxes, meant, slot, noisy.real.expand(layers, -1, -1), worth)


def predict(model: nn.Module, pixels: Tensor, noisy: Noisy) -> Predictions:
    """Return the model's own forward pass, module by module.

    Backbone and encoder follow autocast; the decoder, whose sigmoids must tell pixels apart, computes in float32.
    """
    core: Any = model.model
    maps = feature_maps(model, pixels)
    with torch.autocast(pixels.device.type, enabled=False):
        return _decoded(core, [found.float() for found in maps], noisy, int(core.config.num_queries))


def _decoded(core: Any, maps: list[Tensor], noisy: Noisy, queries: int) -> Predictions:
    shapes = [tuple(found.shape[-2:]) for found in maps]
    memory = torch.cat([found.flatten(2).transpose(1, 2) for found in maps], dim=1)
    anchors, usable = core.generate_anchors(tuple(shapes), device=memory.device, dtype=memory.dtype)
    states = core.enc_output(usable * memory)
    logits, raw = core.enc_score_head(states), core.enc_bbox_head(states) + anchors
    best = logits.detach().amax(-1).topk(queries, dim=1).indices[..., None]
    logits, raw = (value.gather(1, best.expand(-1, -1, value.shape[-1])) for value in (logits, raw))
    asking = states.gather(1, best.expand(-1, -1, states.shape[-1])).detach()
    unseen = torch.zeros_like(noisy.visible, dtype=memory.dtype).masked_fill(~noisy.visible, -torch.inf)[:, None]
    on_host = torch.tensor(shapes)  # where it is only compared
    decoded = core.decoder(
        inputs_embeds=torch.cat([_chosen(core.denoising_class_embed.weight, noisy.labels), asking], dim=1),
        encoder_hidden_states=memory,
        encoder_attention_mask=unseen,
        reference_points=torch.cat([_unsquashed(noisy.boxes), raw.detach()], dim=1),
        spatial_shapes=on_host,
        spatial_shapes_list=shapes,
        level_start_index=torch.cat([on_host.new_zeros(1), on_host.prod(1).cumsum(0)[:-1]]),
    )
    split = [noisy.labels.shape[1], queries]
    noisy_logits, found_logits = decoded.intermediate_logits.transpose(0, 1).split(split, dim=2)
    noisy_boxes, found_boxes = decoded.intermediate_reference_points.transpose(0, 1).split(split, dim=2)
    logits, boxes = torch.cat([logits[None], found_logits]), torch.cat([F.sigmoid(raw)[None], found_boxes])
    return Predictions(logits, boxes, noisy_logits, noisy_boxes)


def _chosen(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table as a product, whose gradient takes no sorting of the rows."""
    return (rows[..., None] == torch.arange(len(table), device=rows.device)).to(table.dtype) @ table


def _unsquashed(shares: Tensor) -> Tensor:
    shares = shares.clamp(0, 1)
    return (shares.clamp(min=_EPS) / (1 - shares).clamp(min=_EPS)).log()


def feature_maps(model: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Return what the decoder attends to: [N, width, H / stride, W / stride] for each stride."""
    core: Any = model.model
    for intra_scale in core.encoder.aifi:
        intra_scale.layers.eval()  # in training it asks the host whether its states are finite, and nothing else
    maps = core.backbone.model(pixels).feature_maps
    maps = [project(found) for project, found in zip(core.encoder_input_proj, maps, strict=True)]
    maps = core.encoder(maps).last_hidden_state
    return [project(found) for project, found in zip(core.decoder_input_proj, maps, strict=True)]

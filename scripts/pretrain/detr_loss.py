"""What the detector is trained by; an auction on the device assigns targets, so that no step waits for the host.

The losses are RT-DETR's (Zhao et al. 2024): a varifocal loss of the classes, an L1 and a generalized IoU loss of boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.pretrain.detr_model import Noisy, Predictions, to_corners

CLASS, DISTANCE, OVERLAP = 1.0, 5.0, 2.0
"""Weights of the three losses."""

CLASS_COST = 2.0
"""Weight of the class in the assignment; the other two are as in the loss."""


@dataclass(frozen=True)
class Targets:
    """Things of a batch; boxes (batch, things, 4) as centre and size in 0..1, labels (batch, things), -1 for none."""

    boxes: Tensor
    labels: Tensor


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU (Rezatofighi et al. 2019) of boxes (..., 4) given by corners, which broadcast."""
    both = _area(torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    hull = _area(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    either = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - both
    share = both / either.clamp(min=1e-9)
    return share, share - (hull - either) / hull.clamp(min=1e-9)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height  # the gradient of prod() would ask the host for zeros


@torch.no_grad()
def costs(logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
    """What it costs to give a target to a query: (layers, batch, things, queries), RT-DETR's matching cost."""
    labels = targets.labels.clamp(min=0)[None, :, None].expand(len(logits), -1, logits.shape[2], -1)
    chance = logits.sigmoid().gather(-1, labels).transpose(2, 3)
    yes = 0.25 * (1 - chance).square() * -(chance + 1e-8).log()
    no = 0.75 * chance.square() * -(1 - chance + 1e-8).log()
    wanted, found = targets.boxes[None, :, :, None], boxes[:, :, None]
    distance = (wanted - found).abs().sum(-1)
    return CLASS_COST * (yes - no) + DISTANCE * distance - OVERLAP * overlaps(to_corners(wanted), to_corners(found))[1]


@torch.no_grad()
def auction(cost: Tensor, wanted: Tensor, rounds: int = 24, step: float = 0.02) -> tuple[Tensor, Tensor]:
    """Assign targets to queries one to one, at nearly the least total cost (Bertsekas 1988), all problems at once.

    In each round every target without a query bids for the one that is best for it at the prices so far, as much as
    it gains over its second best and ``step`` more; the highest bid for a query wins it. What is assigned costs at
    most ``step`` a target more than the best assignment of the same targets; after the last round a few targets of a
    hard problem may be left over.

    Args:
        cost: (problems, targets, queries).
        wanted: bool (problems, targets), which targets there are.

    Returns:
        The query of each target, and whether it has one: (problems, targets).
    """
    price = cost.new_zeros(len(cost), cost.shape[2])
    owner = torch.full_like(price, -1, dtype=torch.long)
    names = torch.arange(cost.shape[1], device=cost.device)[:, None]
    owned = owner[:, None] == names
    for _ in range(rounds):
        worth = -cost - price[:, None]
        (best, next_best), (query, _) = (value.unbind(-1) for value in worth.topk(2, dim=-1))
        offer = price.gather(1, query) + best - next_best + step
        offer = offer.masked_fill(owned.any(-1) | ~wanted, -torch.inf)
        highest, bidder = torch.full_like(worth, -torch.inf).scatter(-1, query[..., None], offer[..., None]).max(1)
        sold = highest > -torch.inf
        price, owner = torch.where(sold, highest, price), torch.where(sold, bidder, owner)
        owned = owner[:, None] == names
    return owned.int().argmax(-1), owned.any(-1)


def detection_loss(found: Predictions, noisy: Noisy, targets: Targets) -> Tensor:
    """The sum over layers and kinds of queries of the three losses, per thing."""
    wanted = targets.labels >= 0
    layers, batch = found.logits.shape[:2]
    cost = costs(found.logits, found.boxes, targets)
    query, has = auction(cost.flatten(0, 1), wanted.repeat(layers, 1))
    query, has = query.view(layers, batch, -1), has.view(layers, batch, -1)
    number = wanted.sum().clamp(min=1)
    loss = set_loss(found.logits, found.boxes, targets, query, has) / number
    meant = Targets(
        targets.boxes.gather(1, noisy.which[..., None].expand(-1, -1, 4)), targets.labels.gather(1, noisy.which)
    )
    layers, pairs = len(found.noisy_logits), noisy.which.shape[1]
    slot = torch.arange(pairs, device=query.device).expand(layers, batch, -1)
    asked = noisy.real.repeat(1, 2)
    noisy_loss = set_loss(found.noisy_logits, found.noisy_boxes, meant, slot, noisy.real.expand(layers, -1, -1), asked)
    return loss + noisy_loss / noisy.real.sum().clamp(min=1)


def set_loss(
    logits: Tensor, boxes: Tensor, targets: Targets, query: Tensor, has: Tensor, asked: Tensor | None = None
) -> Tensor:
    """The weighted sum of the three losses over layers (layers, batch, queries, ...) and things, not yet divided.

    ``query`` (layers, batch, things) is the one that is to find a thing, where it ``has`` one; queries that are not
    ``asked`` (batch, queries) count nowhere.
    """
    mine = boxes.gather(2, query[..., None].expand(-1, -1, -1, 4))
    share, generalized = overlaps(to_corners(mine), to_corners(targets.boxes)[None])
    box_losses = DISTANCE * (mine - targets.boxes[None]).abs().sum(-1) + OVERLAP * (1 - generalized)
    labels = targets.labels.clamp(min=0)[None].expand_as(query)
    place = query * logits.shape[-1] + labels
    yes = torch.zeros_like(logits).flatten(2).scatter_add(2, place, has.to(logits.dtype)).view_as(logits)
    quality = share.detach().clamp(0, 1) * has
    score = torch.zeros_like(logits).flatten(2).scatter_add(2, place, quality).view_as(logits)
    weight = 0.75 * logits.detach().sigmoid().square() * (1 - yes) + score
    class_losses = F.binary_cross_entropy_with_logits(logits, score, weight=weight, reduction="none").sum(-1)
    if asked is not None:
        class_losses = class_losses * asked
    return CLASS * class_losses.sum() + (box_losses * has).sum()

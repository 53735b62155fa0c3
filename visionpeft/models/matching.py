"""Which query is to find which thing: an auction on the device, so that no step waits for the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROOM = 16
"""Rows of targets are filled up to a multiple of this, so that few shapes of batches come up."""


@dataclass(frozen=True)
class Targets:
    """Things of a batch; each picture's come first in its row.

    Attributes:
        boxes: [N, T, 4] float32, (centre x, centre y, width, height) as shares; 0 where there is no thing.
        labels: [N, T] int64, -1 where there is no thing.
    """

    boxes: Tensor
    labels: Tensor

    def lists(self) -> list[dict[str, Tensor]]:
        """Return "class_labels" [n] and "boxes" [n, 4] of each picture, as transformers takes them.

        This waits for the device.
        """
        there = [labels >= 0 for labels in self.labels]
        rows = zip(self.labels, self.boxes, there, strict=True)
        return [{"class_labels": labels[some], "boxes": boxes[some]} for labels, boxes, some in rows]


def padded_targets(pictures: Sequence[dict[str, Tensor]]) -> Targets:
    """Return the targets of pictures, given as by ``Targets.lists``."""
    most = max((len(picture["boxes"]) for picture in pictures), default=0)
    room = max(1, -(-most // ROOM)) * ROOM
    boxes, labels = torch.zeros(len(pictures), room, 4), torch.full((len(pictures), room), -1)
    for row, picture in enumerate(pictures):
        boxes[row, : len(picture["boxes"])] = picture["boxes"]
        labels[row, : len(picture["boxes"])] = picture["class_labels"]
    return Targets(boxes, labels)


@dataclass(frozen=True)
class Weights:
    """What classes, distances and overlaps count.

    Attributes:
        classes: of the class.
        distance: of the L1 distance of boxes.
        overlap: of the generalized IoU.
    """

    classes: float
    distance: float
    overlap: float


def to_corners(boxes: Tensor) -> Tensor:
    """Centre, width and height to the corners' x and y: (..., 4)."""
    middle, size = boxes.split(2, dim=-1)
    return torch.cat([middle - size / 2, middle + size / 2], dim=-1)


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
def costs(logits: Tensor, boxes: Tensor, targets: Targets, weights: Weights) -> Tensor:
    """What it costs to give a target to a query: (layers, batch, things, queries), RT-DETR's matching cost."""
    labels = targets.labels.clamp(min=0)[None, :, None].expand(len(logits), -1, logits.shape[2], -1)
    chance = logits.sigmoid().gather(-1, labels).transpose(2, 3)
    yes = 0.25 * (1 - chance).square() * -(chance + 1e-8).log()
    no = 0.75 * chance.square() * -(1 - chance + 1e-8).log()
    wanted, found = targets.boxes[None, :, :, None], boxes[:, :, None]
    distance = (wanted - found).abs().sum(-1)
    overlap = overlaps(to_corners(wanted), to_corners(found))[1]
    return weights.classes * (yes - no) + weights.distance * distance - weights.overlap * overlap


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

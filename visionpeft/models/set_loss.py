"""RT-DETR's loss of a set of answers (Zhao et al. 2024, arXiv:2304.08069), without a wait for the host.

A varifocal loss of the classes, an L1 and a generalized IoU loss of boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visionpeft.models.matching import Targets, Weights, overlaps, to_corners


@dataclass(frozen=True)
class SetLoss:
    """Sums over answers and things, scalars.

    Attributes:
        classes: varifocal loss of all queries.
        distance: L1 distance of matched boxes.
        overlap: 1 - generalized IoU of them.
    """

    classes: Tensor
    distance: Tensor
    overlap: Tensor

    def weighted(self, weights: Weights) -> Tensor:
        """Return the weighted sum."""
        return weights.classes * self.classes + weights.distance * self.distance + weights.overlap * self.overlap


def set_loss(
    logits: Tensor, boxes: Tensor, targets: Targets, query: Tensor, has: Tensor, worth: Tensor | None = None
) -> SetLoss:
    """The three losses over layers (layers, batch, queries, ...) and things, not yet divided.

    ``query`` (layers, batch, things) is the one that is to find a thing, where it ``has`` one; all that is of a picture
    counts as much as it is ``worth`` (batch, 1), 1 unless given.
    """
    mine = boxes.gather(2, query[..., None].expand(-1, -1, -1, 4))
    share, generalized = overlaps(to_corners(mine), to_corners(targets.boxes)[None])
    distance = (mine - targets.boxes[None]).abs().sum(-1)
    labels = targets.labels.clamp(min=0)[None].expand_as(query)
    place = query * logits.shape[-1] + labels
    yes = torch.zeros_like(logits).flatten(2).scatter_add(2, place, has.to(logits.dtype)).view_as(logits)
    quality = share.detach().clamp(0, 1) * has
    score = torch.zeros_like(logits).flatten(2).scatter_add(2, place, quality).view_as(logits)
    weight = 0.75 * logits.detach().sigmoid().square() * (1 - yes) + score
    class_losses = F.binary_cross_entropy_with_logits(logits, score, weight=weight, reduction="none").sum(-1)
    part = 1.0 if worth is None else worth
    overlap = (1 - generalized) * has * part
    return SetLoss((class_losses * part).sum(), (distance * has * part).sum(), overlap.sum())

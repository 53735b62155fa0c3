"""Denoising queries: disturbed copies of the boxes of a batch, which a detector of the DETR family learns to put right.

They are contrastive, as in DINO (Zhang et al. 2023, arXiv:2203.03605), which RT-DETR takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visionpeft.models.matching import Targets, to_corners

CHANCES = 10
"""Random numbers that a query is made of: whether its label is wrong, which label, four shifts, four signs."""


class Noise(NamedTuple):
    """How much is disturbed.

    Attributes:
        labels: share of the queries with another label.
        boxes: largest shift of a corner, in half sides of the box.
    """

    labels: float
    boxes: float


@dataclass(frozen=True)
class Noisy:
    """Denoising queries of a batch, positive ones first, then as many that are disturbed too much.

    Attributes:
        labels: int64 [N, 2 P]; where it is the number of classes there is no query.
        boxes: [N, 2 P, 4] in 0..1.
        which: int64 [N, P], the thing that a positive query is to find.
        real: bool [N, P], whether there is such a thing.
        visible: bool [N, 2 P + Q, 2 P + Q], which query (row) sees which (column), matching queries last.
    """

    labels: Tensor
    boxes: Tensor
    which: Tensor
    real: Tensor
    visible: Tensor


def noisy_queries(targets: Targets, classes: int, queries: int, noise: Noise, chances: Tensor) -> Noisy:
    """Return denoising queries; query ``i`` of a picture with n things is of thing ``i mod n`` and of group ``i // n``.

    Groups do not see each other, and the matching queries see none of them.

    Args:
        targets: of the batch.
        classes: how many there are.
        queries: Q, the matching queries of a picture.
        noise: how much is disturbed.
        chances: random numbers in [0, 1), [N, 2 P, CHANCES].
    """
    pairs = chances.shape[1] // 2
    number = (targets.labels >= 0).sum(1, keepdim=True)
    slot = torch.arange(pairs, device=chances.device)
    which, group = slot % number.clamp(min=1), slot // number.clamp(min=1)
    real = (number > 0).expand(-1, pairs)
    label = targets.labels.gather(1, which).repeat(1, 2)
    box = targets.boxes.gather(1, which[..., None].expand(-1, -1, 4)).repeat(1, 2, 1)
    label = torch.where(chances[..., 0] < noise.labels, (chances[..., 1] * classes).long(), label)
    label = label.masked_fill(~real.repeat(1, 2), classes)
    too_much = torch.arange(2 * pairs, device=chances.device)[:, None] >= pairs
    shift = (chances[..., 2:6] + too_much) * torch.where(chances[..., 6:] < 0.5, -1.0, 1.0)
    corners = (to_corners(box) + noise.boxes * shift * box[..., 2:].repeat(1, 1, 2) / 2).clamp(0, 1)
    low, high = corners.split(2, dim=-1)
    # Numbers of groups; the matching queries are of one that all see and that sees itself alone.
    group = torch.cat([group, group, group.new_full((len(group), queries), -1)], dim=1)
    visible = (group[:, :, None] == group[:, None]) | (group == -1)[:, None]
    return Noisy(label, torch.cat([(low + high) / 2, high - low], dim=-1), which, real, visible)

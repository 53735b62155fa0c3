"""Random boxes with labels."""

import torch

from visionpeft.models.matching import Targets


def random_things(count: int, classes: int, seed: int) -> Targets:
    """Random boxes and labels, the first row full, the second empty."""
    rng = torch.Generator().manual_seed(seed)
    middle, size = (
        torch.rand(count, 12, 2, generator=rng) * 0.6 + 0.2,
        torch.rand(count, 12, 2, generator=rng) * 0.3 + 0.05,
    )
    labels = torch.randint(classes, (count, 12), generator=rng)
    number = torch.randint(1, 12, (count, 1), generator=rng)
    number[0], number[1] = 12, 0
    there = torch.arange(12) < number
    boxes = torch.cat([middle, size], -1) * there[..., None]
    return Targets(boxes, labels.masked_fill(~there, -1))

"""In which order samples are trained on: a pure function of the seed, so that a resumed run needs no saved state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Position:
    """One draw of one sample.

    Attributes:
        epoch: how many times the whole set was gone through before, from 0.
        index: which sample of the set, 0 to samples - 1. Augmentation is a function of (seed, epoch, index).
        slot: the place within the step's global batch (over micro-batches and processes), from 0. Noise is a
            function of (seed, step, slot).
    """

    epoch: int
    index: int
    slot: int


@lru_cache(maxsize=4)
def permutation(seed: int, samples: int, epoch: int) -> tuple[int, ...]:
    """Return the order of an epoch's samples, the same for the same arguments; O(samples), the last four are kept.

    Args:
        seed: of the run, at least 0.
        samples: how many samples an epoch has, at least 1.
        epoch: from 0.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    return tuple(generator.permutation(samples).tolist())


def positions(seed: int, samples: int, start: int, count: int) -> list[Position]:
    """Return the draws ``start`` to ``start + count - 1`` of a run that goes through its samples epoch by epoch.

    A run of global batches of size G takes ``positions(seed, samples, step * G, G)`` for its step ``step``; each
    sample comes once an epoch, and a batch may span epochs.

    Args:
        seed: of the run, at least 0.
        samples: how many samples an epoch has, at least 1.
        start: number of draws before the first one, from 0.
        count: how many draws; their slots are 0 to count - 1.
    """
    found: list[Position] = []
    for slot in range(count):
        epoch, place = divmod(start + slot, samples)
        found.append(Position(epoch, permutation(seed, samples, epoch)[place], slot))
    return found

"""Utterances of like length in one batch, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from visionpeft.data.order import permutation

_STREAM = 0x6C65_6E67
"""Sets this draw apart from others by the same seed."""


class Grouped:
    """Draws utterances of like length together, each once an epoch: a function of (seed, epoch, index), stateless.

    An epoch's utterances are shuffled, taken in windows of ``spread`` batches, sorted by length within a window, cut
    into batches, and the batches are shuffled. A draw's index only says its place in the epoch's order (see
    :func:`visionpeft.data.order.positions`); what stands there is decided here. Where batches begin in an epoch is
    reckoned with, so that they are those of :class:`visionpeft.training.batches.BatchPlan`, on any number of processes
    that share a batch of the same size. A batch that spans two epochs holds lengths of all kinds.

    Args:
        lengths: of the utterances, in seconds or tokens.
        seed: of the run, at least 0.
        batch: samples of a step over all micro-batches and processes.
        spread: batches of a window: 1 groups nothing, more groups closer and shuffles less.
    """

    def __init__(self, lengths: Sequence[float], seed: int, batch: int, spread: int = 50) -> None:
        self._lengths: NDArray[np.float64] = np.asarray(lengths, np.float64)
        self._seed, self._batch, self._spread = seed, batch, spread
        self._drawn = lru_cache(maxsize=4)(self._epoch)

    def utterance(self, epoch: int, index: int) -> int:
        """Return which utterance a draw takes.

        Args:
            epoch: from 0.
            index: of the draw, 0 to n - 1.
        """
        return int(self._drawn(epoch)[index])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Utterance of each index."""
        drawn = np.empty(len(self._lengths), np.int64)
        drawn[np.asarray(permutation(self._seed, len(self._lengths), epoch))] = self._order(epoch)
        return drawn

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Utterance of each place: a batch that was begun before, whole batches, one that goes on in the next epoch."""
        rng = np.random.Generator(np.random.PCG64([self._seed, epoch, _STREAM]))
        count, batch = len(self._lengths), self._batch
        shuffled = rng.permutation(count)
        begun = min(count, -epoch * count % batch)
        end = begun + (count - begun) // batch * batch
        windows = _cut(shuffled[begun:end], self._spread * batch)
        batches = [part for window in windows for part in _cut(self._by_length(window), batch)]
        drawn = [batches[number] for number in rng.permutation(len(batches))]
        return np.concatenate([shuffled[:begun], *drawn, shuffled[end:]])

    def _by_length(self, window: NDArray[np.int64]) -> NDArray[np.int64]:
        return window[np.argsort(self._lengths[window], kind="stable")]


def _cut(indices: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]

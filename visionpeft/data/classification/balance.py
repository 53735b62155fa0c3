"""Rare labels seen as often as common ones, or weighing as much: draws and weights as functions of the targets."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from visionpeft.data.classification.labelled import LabelledPictures
from visionpeft.data.order import Position
from visionpeft.errors import DataError

Weighting = Literal["inverse", "effective"]


class Balanced:
    """Draws every label equally often: a function of (seed, epoch, index), without a state.

    An epoch still has as many draws as there are pictures, N. Draw ``index`` belongs to label ``index mod C`` (indices
    come in random order, see :func:`visionpeft.data.order.positions`), so each label has N / C draws an epoch, give or
    take one. Within a label the pictures are gone through in random order, again and again and across epochs, so that
    each comes equally often, give or take one. With multilabel, a picture belongs to each of its labels, and those
    without any to one group more.

    Args:
        pictures: at least one; labels that none has are passed over.
        seed: of the run, at least 0.
    """

    def __init__(self, pictures: LabelledPictures, seed: int) -> None:
        present = pictures.one_hot().astype(bool)
        columns = [*present.T, ~present.any(axis=1)]
        self._members = [np.flatnonzero(column) for column in columns if column.any()]
        self._samples = len(pictures)
        self._seed = seed

    def picture(self, position: Position) -> int:
        """Return which picture a draw takes.

        Args:
            position: the draw, its index from 0 to N - 1. Chance (augmentation) belongs to the position as it is, so
                that a picture that is drawn twice in an epoch is changed in two ways.
        """
        groups = len(self._members)
        round_, group = divmod(position.index, groups)
        members = self._members[group]
        an_epoch = (self._samples - group + groups - 1) // groups
        cycle, place = divmod(position.epoch * an_epoch + round_, len(members))
        return int(members[_order(self._seed, group, cycle, len(members))[place]])

    def position(self, position: Position) -> Position:
        """Return the draw with the index of the picture that it takes."""
        return replace(position, index=self.picture(position))


@lru_cache(maxsize=256)
def _order(seed: int, group: int, cycle: int, members: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order in which a label's pictures are gone through for the ``cycle``-th time."""
    return np.random.Generator(np.random.PCG64([seed, group, cycle, _STREAM])).permutation(members)


_STREAM = 0x6261_6C61
"""Sets these draws apart from others that are seeded alike."""


def class_weights(
    pictures: LabelledPictures, weighting: Weighting = "inverse", beta: float = 0.999
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what the loss of each label is multiplied by, [C] float64.

    "inverse": N / (C n_c), as scikit-learn's "balanced": the mean over pictures is 1. "effective": in proportion to
    (1 - β) / (1 - β^n_c) (Cui et al. 2019, arXiv:1901.05555), scaled in the same way. For multilabel: what a present
    label's loss is multiplied by, so that it weighs as much as its absence: (N - n_c) / n_c; "effective" puts the
    effective numbers of both in the place of the counts.

    Args:
        pictures: those trained on.
        weighting: which of the two.
        beta: of the effective number, in [0, 1).

    Raises:
        DataError: a label has no picture (multilabel: all or none have it), or beta is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise DataError(f"beta of the effective number lies in [0, 1), not {beta:g}.")
    counts = pictures.one_hot().sum(axis=0)
    total = len(pictures)
    several = pictures.kind == "multilabel"
    bad = [
        label
        for label, count in zip(pictures.labels, counts.tolist(), strict=True)
        if count == 0 or (several and count == total)
    ]
    if bad:
        some = "all or none of the pictures have" if several else "no picture has"
        raise DataError(f"{some} the label {bad[0]}: it cannot be weighted. Leave it out of labels.")
    present = _effective(counts, beta) if weighting == "effective" else counts.astype(np.float64)
    if several:
        absent = _effective(total - counts, beta) if weighting == "effective" else (total - counts).astype(np.float64)
        return absent / present
    return (1 / present) * total / (counts / present).sum()


def _effective(counts: np.ndarray[Any, np.dtype[np.int64]], beta: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The effective number of pictures, (1 - β^n) / (1 - β)."""
    return (1 - beta ** counts.astype(np.float64)) / (1 - beta)

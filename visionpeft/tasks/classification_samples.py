"""The training pictures of a classification as samples: drawn, read, varied, made into pixels ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionpeft.compute.tensors import moved
from visionpeft.data.ahead import Ahead, Kept
from visionpeft.data.classification import Balanced, LabelledPictures, augmented
from visionpeft.data.order import Position
from visionpeft.models.preprocess import Preprocessing
from visionpeft.tasks.classification_settings import ClassifyData

_MIB = 1 << 20


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    Attributes:
        pixels: [N, 3, H, W] float32.
        targets: [N, C] float32, 1 for the labels that are present.
    """

    pixels: Tensor
    targets: Tensor


class Samples:
    """What a draw of a run shows: a function of (seed, epoch, index).

    Args:
        pictures: to train on.
        preprocessing: how they become pixels.
        data: how they are drawn and varied.
        seed: of the run.
        world: number of processes.
    """

    def __init__(
        self, pictures: LabelledPictures, preprocessing: Preprocessing, data: ClassifyData, seed: int, world: int
    ) -> None:
        self._pictures, self._preprocessing, self._data, self._seed = pictures, preprocessing, data, seed
        self._targets = torch.from_numpy(pictures.one_hot()).float()
        self._balanced = Balanced(pictures, seed) if data.balanced else None
        self._kept = Kept(pictures.image, data.cache * _MIB)
        self._ahead = Ahead(self._made, seed, len(pictures), world, data.workers)

    def __len__(self) -> int:
        return len(self._pictures)

    def batch(self, positions: Sequence[Position], device: torch.device) -> Batch:
        """Return the samples at these positions."""
        targets = self._targets[[self._which(position) for position in positions]]
        return Batch(moved(torch.stack(self._ahead.take(positions)), device), moved(targets, device))

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the names of the pictures at these positions."""
        return [self._pictures.examples[self._which(position)].name for position in positions]

    def _which(self, draw: Position) -> int:
        """The picture that a draw shows."""
        return self._balanced.picture(draw) if self._balanced else draw.index

    def _made(self, epoch: int, index: int) -> Tensor:
        image = self._kept.image(self._which(Position(epoch, index, 0)))
        varied = augmented(image, self._data.augment, at=(self._seed, epoch, index))
        return self._preprocessing.pixels([varied])[0]

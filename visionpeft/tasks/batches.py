"""Which latents a micro-batch of a DreamBooth run has: subject samples, and a class sample beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visionpeft.compute.tensors import moved
from visionpeft.data.order import Position, permutation
from visionpeft.models.base import Base
from visionpeft.models.prompts import time_ids
from visionpeft.tasks.latents import Latents, Moments
from visionpeft.training.rng import mix_seed

SUBJECT, CLASS = 0, 1
"""The kinds of samples."""


@dataclass(frozen=True)
class Group:
    """The samples of a micro-batch that have one shape, and so go through the UNet together: subject first, then class.

    Attributes:
        mean: of the latents' distributions, [n, C, h, w] float32.
        std: the same.
        kind: [n] long, SUBJECT or CLASS.
        prompt: [n] long, which prompt: 0 is the subject's, then those of the class, then the empty one.
        rows: for each kind, the rows of the micro-batch that its random numbers are taken from, [n_kind] long.
        ids: size conditioning of the UNet, [n, 6]; None for families without.
    """

    mean: Tensor
    std: Tensor
    kind: Tensor
    prompt: Tensor
    rows: tuple[Tensor, Tensor]
    ids: Tensor | None


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    Attributes:
        groups: its samples by shape.
        count: scalar float32, the number of subject samples: the class loss comes on top, as in the paper.
    """

    groups: tuple[Group, ...]
    count: Tensor


class _Draw(NamedTuple):
    kind: int
    row: int
    prompt: int
    moments: Moments


class Draws:
    """Makes micro-batches: a function of the positions and the seed alone.

    Args:
        base: the model, for its size conditioning.
        sources: the subject's latents, and the class's where there is a prior.
        class_prompts: number of the prior's prompts, which its pictures show in turn.
        seed: of the run.
        device: where batches belong.
        blank: share of the class draws that are given the empty prompt, which is the one after those of the class.
    """

    def __init__(
        self,
        base: Base,
        sources: Sequence[Latents],
        seed: int,
        device: torch.device,
        class_prompts: int = 1,
        blank: float = 0.0,
    ) -> None:
        self._base = base
        self._class_prompts, self._blank = class_prompts, blank
        self._sources = sources
        self._seed = seed
        self._device = device

    def samples(self) -> int:
        """Return the number of subject pictures."""
        return len(self._sources[SUBJECT])

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the files of these draws, class pictures too."""
        kinds = range(len(self._sources))
        return [self._sources[kind].file(self._place(kind, position)[1]) for kind in kinds for position in positions]

    def batch(self, positions: Sequence[Position]) -> Batch:
        """Return the distributions of these draws, grouped by shape."""
        draws = [
            self._draw(kind, row, position)
            for kind in range(len(self._sources))
            for row, position in enumerate(positions)
        ]
        shapes = dict.fromkeys(draw.moments.mean.shape for draw in draws)
        groups = tuple(self._group([draw for draw in draws if draw.moments.mean.shape == shape]) for shape in shapes)
        return Batch(groups, torch.full((), float(len(positions)), device=self._device))

    def _draw(self, kind: int, row: int, position: Position) -> _Draw:
        epoch, index = self._place(kind, position)
        return _Draw(kind, row, self._prompt(kind, epoch, index), self._sources[kind].draw(epoch, index))

    def _prompt(self, kind: int, epoch: int, index: int) -> int:
        if kind == SUBJECT:
            return 0
        if mix_seed(self._seed, "blank", epoch, index) < self._blank * 2**63:
            return 1 + self._class_prompts
        return 1 + index % self._class_prompts

    def _group(self, draws: Sequence[_Draw]) -> Group:
        rows = [[draw.row for draw in draws if draw.kind == wanted] for wanted in (SUBJECT, CLASS)]
        numbers = [[draw.kind for draw in draws], [draw.prompt for draw in draws], *rows]
        kind, prompt, subject, classes = self._long(numbers)
        height, width = (side * self._base.latent_scale_factor for side in draws[0].moments.mean.shape[1:])
        return Group(
            mean=torch.stack([draw.moments.mean for draw in draws]),
            std=torch.stack([draw.moments.std for draw in draws]),
            kind=kind,
            prompt=prompt,
            rows=(subject, classes),
            ids=time_ids(self._base, len(draws), (height, width)),
        )

    def _place(self, kind: int, position: Position) -> tuple[int, int]:
        """Return epoch and index within the source; class pictures are gone through in an order of their own."""
        if kind == SUBJECT:
            return position.epoch, position.index
        drawn = position.epoch * self.samples() + position.index
        epoch, place = divmod(drawn, len(self._sources[CLASS]))
        return epoch, permutation(mix_seed(self._seed, "class"), len(self._sources[CLASS]), epoch)[place]

    def _long(self, rows: Sequence[list[int]]) -> tuple[Tensor, ...]:
        """Numbers on the device, in one copy."""
        whole = moved(torch.tensor([number for row in rows for number in row], dtype=torch.long), self._device)
        return whole.split([len(row) for row in rows])

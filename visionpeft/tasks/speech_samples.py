"""Training speech as micro-batches of features and tokens, on threads and a batch ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visionpeft.compute.tensors import moved
from visionpeft.data.ahead import Ahead
from visionpeft.data.order import Position
from visionpeft.data.speech.audio import RATE
from visionpeft.data.speech.augment import augmented
from visionpeft.data.speech.features import LogMels
from visionpeft.data.speech.lengths import Grouped
from visionpeft.data.speech.utterances import Utterances
from visionpeft.tasks.speech_settings import TranscribeData
from visionpeft.tasks.speech_tokens import SpeechTokens


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device.

    Attributes:
        features: [N, mels, frames] float32, padded to 30 seconds.
        frames: [N] long, how many of them are sound.
        read: [N, L] long, see ``TokenBatch``.
        said: [N, L] long, see ``TokenBatch``.
    """

    features: Tensor
    frames: Tensor
    read: Tensor
    said: Tensor


class Sample(NamedTuple):
    """One utterance as it is learned from."""

    features: Tensor
    frames: int
    ids: list[int]


class SpeechSamples:
    """Makes micro-batches: a function of the positions and the seed alone.

    Args:
        utterances: to train on.
        mels: makes features.
        tokens: makes tokens.
        data: how they are drawn and varied.
        seed: of the run.
        world: number of processes.
        global_batch: samples of a step on all processes.
        window: seconds that the model hears at once.

    Raises:
        DataError: a text is too long for the model.
    """

    def __init__(
        self,
        utterances: Utterances,
        mels: LogMels,
        tokens: SpeechTokens,
        data: TranscribeData,
        seed: int,
        world: int,
        global_batch: int,
        window: float,
    ) -> None:
        self._window = window
        self._utterances, self._mels, self._tokens, self._data, self._seed = utterances, mels, tokens, data, seed
        lengths = [len(self._ids(index)) for index in range(len(utterances))]
        self._grouped = Grouped(lengths, seed, global_batch) if data.grouped else None
        self._ahead: Ahead[Sample] = Ahead(self._made, seed, len(utterances), world, data.workers)

    def __len__(self) -> int:
        return len(self._utterances)

    def batch(self, positions: Sequence[Position], device: torch.device) -> Batch:
        """Return the samples at these positions."""
        samples = self._ahead.take(positions)
        tokens = self._tokens.batch([sample.ids for sample in samples], self._data.bucket)
        features = torch.stack([sample.features for sample in samples])
        frames = torch.tensor([sample.frames for sample in samples])
        return Batch(*(moved(part, device) for part in (features, frames, tokens.read, tokens.said)))

    def files(self, positions: Sequence[Position]) -> list[str]:
        """Return the names of the utterances at these positions."""
        return [self._utterances.items[self._which(one.epoch, one.index)].name for one in positions]

    def _which(self, epoch: int, index: int) -> int:
        return index if self._grouped is None else self._grouped.utterance(epoch, index)

    def _ids(self, which: int, stretch: float = 1.0) -> list[int]:
        return self._tokens.of(self._utterances.items[which], self._utterances.seconds(which), stretch)

    def _made(self, epoch: int, index: int) -> Sample:
        which = self._which(epoch, index)
        if not self._data.augment.changes_sound:
            samples = round(self._utterances.seconds(which) * RATE)
            return Sample(self._mels.utterance(self._utterances, which), self._mels.frames(samples), self._ids(which))
        sound = self._utterances.audio(which)
        varied = augmented(sound, self._data.augment, at=(self._seed, epoch, index), window=self._window)
        ids = self._ids(which, len(varied) / len(sound))
        return Sample(self._mels.of(varied), self._mels.frames(len(varied)), ids)

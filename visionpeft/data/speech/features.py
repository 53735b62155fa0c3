"""Log-mel features: computed from sound, or kept by what it holds where it stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from visionpeft.data.cache import Store
from visionpeft.data.speech.audio import RATE, Audio
from visionpeft.data.speech.utterances import Utterances

_MIB = 1 << 20


class Extractor(Protocol):
    """What makes features: the WhisperFeatureExtractor of a base."""

    hop_length: int

    def __call__(self, raw_speech: Any, *, sampling_rate: int, return_tensors: str) -> Any:
        """Return ``input_features``, [1, mels, frames], padded to 30 seconds."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the settings."""
        ...


class LogMels:
    """Features of sound, and those of utterances kept by the hash of their sound and the extractor's settings.

    The padding after an utterance is one value, and is not kept; what comes back is equal to the bit.

    Args:
        extract: makes features.
        folder: where they are kept between runs; None: in memory alone.
        room: MiB of features that are kept in memory at most.
    """

    def __init__(self, extract: Extractor, folder: Path | None = None, room: int = 1024) -> None:
        self._extract = extract
        self._store = Store(folder, room * _MIB)
        settings = {key: value for key, value in extract.to_dict().items() if key not in ("mel_filters", "window")}
        self._settings = json.dumps(settings, sort_keys=True, default=str)

    @property
    def computed(self) -> int:
        """How many were computed to be kept."""
        return self._store.computed

    def of(self, audio: Audio) -> Tensor:
        """Return the features [mels, frames] float32 of sound [samples] at 16 kHz, padded to 30 seconds."""
        made = self._extract(audio, sampling_rate=RATE, return_tensors="np")
        return torch.from_numpy(made["input_features"][0]).float()

    def frames(self, samples: int) -> int:
        """Return how many frames of the features are sound, of ``samples`` at 16 kHz."""
        return -(-samples // self._extract.hop_length)

    def utterance(self, utterances: Utterances, index: int) -> Tensor:
        """Return the features [mels, frames] of an utterance as it is, computed once for each sound.

        Raises:
            DataError: its sound cannot be read.
            OutputError: the folder cannot be written.
        """
        parts = {"kind": "log-mel", "sound": utterances.digest(index), "settings": self._settings}
        return _whole(self._store.get(parts, lambda: _packed(self.of(utterances.audio(index)))))


def _packed(features: Tensor) -> dict[str, Tensor]:
    """The features without the frames at the end that hold one value only; that value; how many frames there were."""
    floor = features[-1, -1]
    used = (features != floor).any(0).nonzero()
    last = int(used[-1]) + 1 if len(used) else 0
    return {"heard": features[:, :last].clone(), "floor": floor.clone(), "frames": torch.tensor(features.shape[1])}


def _whole(packed: Mapping[str, Tensor]) -> Tensor:
    heard = packed["heard"]
    whole = heard.new_empty(len(heard), int(packed["frames"]))
    whole[:, : heard.shape[1]] = heard
    whole[:, heard.shape[1] :] = packed["floor"]
    return whole

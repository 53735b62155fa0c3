"""SpecAugment (Park et al. 2019, arXiv:1904.08779): stretches of time and bands of pitch taken out of the features."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from visionpeft.data.speech.augment import SpeechAugment


class Chance(Protocol):
    """Where draws come from: those of a training step, or a generator of one's own."""

    def uniform(self, stream: str) -> Tensor:
        """Return [N] draws from [0, 1), float32, on the features' device; the same again for the same stream."""
        ...


def masked(features: Tensor, config: SpeechAugment, rng: Chance, frames: Tensor | None = None) -> Tensor:
    """Return the features with ``config.time_masks`` stretches and ``config.mel_masks`` bands set to their mean.

    A mask's width is uniform from 0 to its share, its place uniform where it fits. Nothing waits for the device.

    Args:
        features: [N, mels, frames], log-mel.
        config: how many masks, how wide.
        rng: draws for the N utterances.
        frames: [N] long, how many frames of each are sound and not padding; masks lie within them, and their mean is
            put in. None: all.
    """
    if not config.time_masks and not config.mel_masks:
        return features
    mels, length = features.shape[1:]
    along = torch.arange(length, device=features.device)
    heard = torch.full((len(features),), float(length), device=features.device) if frames is None else frames.float()
    sound = along < heard[:, None]
    out = torch.zeros_like(sound)
    for number in range(config.time_masks):
        out = out | _run(along, heard, config.time_share, rng, f"time{number}")
    gone = (out & sound)[:, None, :].expand_as(features)
    across, every = torch.arange(mels, device=features.device), torch.full_like(heard, mels)
    for number in range(config.mel_masks):
        gone = gone | (_run(across, every, config.mel_share, rng, f"mel{number}")[:, :, None] & sound[:, None, :])
    mean = (features.float() * sound[:, None, :]).sum((1, 2)) / (heard * mels).clamp_min(1)
    return torch.where(gone, mean[:, None, None].to(features.dtype), features)


def _run(places: Tensor, size: Tensor, share: float, rng: Chance, stream: str) -> Tensor:
    """[N, places] true on a run of at most ``share`` of ``size`` [N], somewhere within it."""
    width = torch.floor(rng.uniform(f"{stream}.width") * (torch.floor(size * share) + 1))
    start = torch.floor(rng.uniform(f"{stream}.start") * (size - width + 1))
    return (places >= start[:, None]) & (places < (start + width)[:, None])

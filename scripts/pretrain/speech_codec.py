"""Speech as Whisper hears it, kept small: log-mel spectrograms coded as pictures are, by cosines of blocks.

A block is 16 frames (0.16 s) of 80 bands. All its cosines are rounded to multiples of one step, most to zero, and
packed with LZMA, coefficient by coefficient over all blocks.
"""

from __future__ import annotations

import lzma
import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperFeatureExtractor

MELS, HOP, RATE, BLOCK = 80, 160, 16_000, 16
DEPTH = 5.5
"""Powers of ten below its loudest spot that are kept of a clip."""
_MIDDLE = -3.5

Audio = NDArray[np.float32]


@lru_cache
def _filters() -> Tensor:
    return torch.from_numpy(np.asarray(WhisperFeatureExtractor(feature_size=MELS).mel_filters, np.float32))


def log_mel(audio: Audio) -> Tensor:
    """Logarithm to base 10 of power, float32 [frames of 10 ms, 80 bands]; 0 is the loudest, -5.5 the least."""
    wave = torch.from_numpy(audio).float()
    spectrum = torch.stft(wave, 400, HOP, window=torch.hann_window(400), return_complex=True, pad_mode="reflect")
    power = spectrum[:, :-1].abs().square()
    logarithm = (_filters().T @ power).clamp(min=1e-10).log10().T
    return (logarithm - logarithm.max()).clamp(min=-DEPTH)


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform, [size, size]: rows are frequencies."""
    place, frequency = torch.arange(size) + 0.5, torch.arange(size)[:, None]
    rows = torch.cos(math.pi / size * frequency * place) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def blocks_of(frames: int) -> int:
    """How many blocks hold so many frames."""
    return -(-frames // BLOCK)


def packed(clips: list[Tensor], step: float) -> bytes:
    """Code clips [frames, 80]; each begins a new block."""
    parts = list[Tensor]()
    for clip in clips:
        short = blocks_of(len(clip)) * BLOCK - len(clip)
        parts.append(torch.cat([clip, clip[-1:].expand(short, -1)]))
    values = torch.cat(parts).view(-1, BLOCK, MELS) - _MIDDLE
    coefficients = cosines(BLOCK) @ values @ cosines(MELS).T
    signed = (coefficients / step).round().int().permute(1, 2, 0)
    folded = torch.where(signed < 0, -2 * signed - 1, 2 * signed).numpy().astype(np.uint16)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0}]
    planes = (folded & 255).astype(np.uint8).tobytes() + (folded >> 8).astype(np.uint8).tobytes()
    return lzma.compress(planes, format=lzma.FORMAT_XZ, filters=filters)


def unpacked(data: bytes, step: float, device: torch.device) -> Tensor:
    """The frames of all blocks one after another, float16 [blocks * 16, 80]."""
    planes = np.frombuffer(lzma.decompress(data), np.uint8).reshape(2, BLOCK, MELS, -1)
    folded = torch.from_numpy(planes[0].astype(np.int16) + (planes[1].astype(np.int16) << 8))
    signed = torch.where(folded % 2 == 1, -(folded + 1) // 2, folded // 2)
    frames = list[Tensor]()
    times, bands = cosines(BLOCK).to(device), cosines(MELS).to(device)
    for chunk in signed.permute(2, 0, 1).split(4096):
        values = times.T @ (chunk.to(device).float() * step) @ bands + _MIDDLE
        frames.append(values.clamp(-DEPTH, 0).half().flatten(0, 1))
    return torch.cat(frames)

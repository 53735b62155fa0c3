"""The corpus in one file of a few MB: clips by part and voice, their texts, and their coded spectrograms."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.pretrain.speech_codec import packed, unpacked

STEPS = {"digits": 1.0, "words": 1.4, "sentences": 1.4, "measured": 0.4}
"""Parts of the corpus and how coarsely each is coded."""


@dataclass(frozen=True)
class Clip:
    """What is kept of a clip beside its spectrogram."""

    part: str
    voice: str
    text: str
    frames: int


@dataclass(frozen=True)
class Corpus:
    """Clips, and the spectrograms of each part one after another, in blocks: float16 [blocks * 16, 80]."""

    clips: list[Clip]
    frames: dict[str, Tensor]

    def of(self, part: str) -> list[Clip]:
        """The clips of a part, in the order of their frames."""
        return [clip for clip in self.clips if clip.part == part]


def write_corpus(clips: Iterable[tuple[Clip, Tensor]], file: Path) -> None:
    """Code the clips' spectrograms, in the order of part and voice, and write the file."""
    order = {part: index for index, part in enumerate(STEPS)}
    kept = sorted(clips, key=lambda one: (order[one[0].part], one[0].voice))
    arrays = dict[str, np.ndarray]()
    for part, step in STEPS.items():
        some = [(clip, mel) for clip, mel in kept if clip.part == part]
        data = packed([mel for _, mel in some], step)
        seconds = sum(clip.frames for clip, _ in some) / 100
        print(f"{part}: {len(some)} clips, {seconds:.0f} s, {len(data)} bytes", flush=True)
        arrays[part] = np.frombuffer(data, np.uint8)
    table = lzma.compress(json.dumps([list(asdict(clip).values()) for clip, _ in kept]).encode())
    np.savez(file, clips=np.frombuffer(table, np.uint8), **arrays)


def read_corpus(file: Path, device: torch.device) -> Corpus:
    """What ``write_corpus`` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        clips = [Clip(*row) for row in json.loads(lzma.decompress(stored["clips"].tobytes()))]
        frames = {part: unpacked(stored[part].tobytes(), step, device) for part, step in STEPS.items()}
    return Corpus(clips, frames)

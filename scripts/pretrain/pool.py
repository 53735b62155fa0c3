"""Pools of scenes with their captions as tokens, held on the device for training to draw from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from scripts.pretrain.artwork import Sprites
from scripts.pretrain.captions import CLEAR, Mention, Writer
from scripts.pretrain.scenes import Layouts, Wisher, lay_out
from scripts.pretrain.tokenizer import LENGTH, corpus, learn_merges, write_tokenizer


@dataclass
class Pool:
    """Scenes (layouts) and, row for row, the ids (scenes, LENGTH) of their captions."""

    layouts: Layouts
    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Pool:
        """The same pool on a device."""
        return Pool(self.layouts.to(device), self.ids.to(device))


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Ids of captions padded as Stable Diffusion pads them: (captions, LENGTH), int64."""
    end = tokenizer.eos_token_id
    ids = np.full((len(captions), LENGTH), end, dtype=np.int64)
    for start in range(0, len(captions), 50_000):
        for row, text in enumerate(tokenizer.backend_tokenizer.encode_batch(captions[start : start + 50_000]), start):
            ids[row, : min(LENGTH - 1, len(text.ids))] = text.ids[: LENGTH - 1]
    return torch.from_numpy(ids)


def scene_pool(sprites: Sprites, tokenizer: CLIPTokenizer, count: int, seed: int) -> Pool:
    """Scenes for the UNet: some attributes named, some captions empty."""
    rng = np.random.default_rng(seed)
    wishes = Wisher(sprites).draw(count, rng)
    captions = Writer(sprites.names, sprites.class_words, Mention(), seed)(wishes)
    return Pool(lay_out(wishes, rng), encode(tokenizer, captions))


def twin_pool(sprites: Sprites, tokenizer: CLIPTokenizer, pairs: int, seed: int) -> Pool:
    """Scenes for contrast: row ``i`` and row ``i + pairs`` differ in one attribute."""
    rng = np.random.default_rng(seed)
    wisher = Wisher(sprites)
    wishes = wisher.draw(pairs, rng)
    writer = Writer(sprites.names, sprites.class_words, CLEAR, seed)
    halves = [(lay_out(half, rng), writer(half)) for half in (wishes, wisher.twins(wishes, rng))]
    first, second = (layouts for layouts, _ in halves)
    layouts = Layouts(**{f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(Layouts)})
    return Pool(layouts, encode(tokenizer, halves[0][1] + halves[1][1]))


def make_tokenizer(sprites: Sprites, folder: Path, seed: int, vocabulary: int = 2200) -> None:
    """Learn the tokenizer from a sample of captions and write it; no held-out concept is among them."""
    rng = np.random.default_rng(seed)
    wishes = Wisher(sprites).draw(20_000, rng)
    captions = [
        c for mention in (Mention(), CLEAR) for c in Writer(sprites.names, sprites.class_words, mention, seed)(wishes)
    ]
    captions += sprites.names[: sprites.trained] * 3
    write_tokenizer(folder, learn_merges(corpus(captions), vocabulary))

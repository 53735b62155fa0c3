"""Clips on the device, and windows of 10 s composed of them: what is heard, and the tokens of what is said."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import WhisperTokenizerFast

from scripts.pretrain.speech_codec import BLOCK, DEPTH, blocks_of
from scripts.pretrain.speech_store import Corpus
from scripts.pretrain.whisper_words import START, UNTIMED, WINDOW

FRAMES = int(100 * WINDOW)
PIECES, TOKENS = 10, 112
"""Clips in a window and tokens of its text at most."""
IGNORED = -100
TIMED, NOTHING, MIXED = 0.35, 0.015, 0.15
"""Shares of windows: with times, without speech, and strings of several speakers."""


@dataclass(frozen=True)
class Groups:
    """From which clips a window is composed: one row a voice, and one for each kind over all voices.

    Attributes:
        first: the first clip, int64 [groups].
        count: how many clips there are.
        most: how many at most are joined.
        joined: whether they are words of one string; else every clip is a segment of its own.
        until: cumulative share of the windows.
    """

    first: Tensor
    count: Tensor
    most: Tensor
    joined: Tensor
    until: Tensor


@dataclass(frozen=True)
class Windows:
    """A batch of windows.

    Attributes:
        power: logarithm to base 10 of each band's power, 0 at a clip's loudest, float32 [batch, FRAMES, MELS].
        inputs: what the decoder reads, int64 [batch, TOKENS].
        labels: what it is to write next; ``IGNORED`` where nothing.
    """

    power: Tensor
    inputs: Tensor
    labels: Tensor


class Pool:
    """All clips of training on the device."""

    def __init__(self, corpus: Corpus, words: WhisperTokenizerFast, device: torch.device) -> None:
        parts = ("digits", "words", "sentences")
        clips = [clip for part in parts for clip in corpus.of(part)]
        self.frames = torch.cat([corpus.frames[part].to(device) for part in parts])
        self.length = torch.tensor([clip.frames for clip in clips], device=device)
        blocks = torch.tensor([blocks_of(clip.frames) for clip in clips], device=device)
        self.start = (blocks.cumsum(0) - blocks) * BLOCK
        ids = [words(f" {clip.text}", add_special_tokens=False).input_ids for clip in clips]
        self.size = torch.tensor([len(tokens) for tokens in ids], device=device)
        longest = max(len(tokens) for tokens in ids)
        self.tokens = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in ids], device=device)
        self.groups = _groups([(clip.part, clip.voice) for clip in clips], device)
        self.begin, self.untimed, self.end = (
            int(words.convert_tokens_to_ids(token)) for token in (START, UNTIMED, str(words.eos_token))
        )
        self.time = self.untimed + 1
        self.device = device

    def draw(self, batch: int) -> Windows:
        """Compose a batch; nothing of it waits for the host."""
        device = self.device
        group = torch.searchsorted(self.groups.until, torch.rand(batch, device=device)).clamp(
            max=len(self.groups.until) - 1
        )
        count, joined = self.groups.count[group, None], self.groups.joined[group, None]
        clip = self.groups.first[group, None] + (torch.rand(batch, PIECES, device=device) * count).long()
        wanted = 1 + (torch.rand(batch, 1, device=device) * self.groups.most[group, None]).long()
        wanted = wanted * (torch.rand(batch, 1, device=device) >= NOTHING)
        speed = torch.empty(batch, 1, device=device).uniform_(0.85, 1.2)
        length = self.length[clip] / speed
        first, last = _places(length, joined)
        fits = (last <= FRAMES - 4) & (self.size[clip].cumsum(1) + 2 * PIECES + 4 <= TOKENS)
        valid = fits & (torch.arange(PIECES, device=device) < wanted)
        power = self._heard(clip, first, valid, speed)
        inputs, labels = self._written(clip, first, last, valid, joined)
        return Windows(power, inputs, labels)

    def _heard(self, clip: Tensor, first: Tensor, valid: Tensor, speed: Tensor) -> Tensor:
        """The spectrograms at their places, each a little louder or softer: [batch, FRAMES, MELS]."""
        now = torch.arange(FRAMES, device=self.device, dtype=torch.float32)
        piece = ((first[:, None] <= now[:, None]) & valid[:, None]).sum(2) - 1
        some = piece.clamp(min=0)
        place = (now - first.gather(1, some)) * speed
        chosen = clip.gather(1, some)
        inside = (piece >= 0) & (place < self.length[chosen] - 1)
        place = torch.where(inside, place, 0)
        begin = self.start[chosen] + place.long()
        share = (place - place.floor())[..., None]
        loud = torch.empty(first.shape, device=self.device).uniform_(-0.4, 0).gather(1, some)[..., None]
        power = torch.lerp(self.frames[begin].float(), self.frames[begin + 1].float(), share) + loud
        return torch.where(inside[..., None], power, -2 * DEPTH)

    def _written(
        self, clip: Tensor, first: Tensor, last: Tensor, valid: Tensor, joined: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Begin, then "no times" or a time before and after each segment, words between, end: inputs and labels."""
        batch, device = len(clip), self.device
        timed = torch.rand(batch, 1, device=device) < TIMED
        size, index = self.size[clip], torch.arange(PIECES, device=device)
        opens = timed & valid & (~joined | (index == 0))
        closes = timed & valid & (~joined | (index == valid.sum(1, keepdim=True) - 1))
        whole = (size + opens.long() + closes.long()) * valid
        untimed = ~timed | ~valid[:, :1]
        at = 1 + untimed.long() + whole.cumsum(1) - whole  # where each piece begins
        written = torch.full((batch, TOKENS + 2), IGNORED, device=device)
        written[:, 0] = self.begin
        written[:, 1] = torch.where(untimed[:, 0], self.untimed, IGNORED)

        def put(place: Tensor, tokens: Tensor, where: Tensor) -> None:
            written.scatter_(1, torch.where(where, place, TOKENS + 1).flatten(1), tokens.flatten(1))

        within = torch.arange(self.tokens.shape[1], device=device)
        put(at, self.time + (first / 2).round().long(), opens)
        put((at + opens)[..., None] + within, self.tokens[clip], valid[..., None] & (within < size[..., None]))
        put(at + opens + size, self.time + (last / 2).round().long(), closes)
        total = 1 + untimed.long() + whole.sum(1, keepdim=True)
        put(total, torch.full_like(total, self.end), torch.ones_like(total, dtype=torch.bool))
        inputs = written[:, :TOKENS].masked_fill(written[:, :TOKENS] == IGNORED, self.end)
        labels = written[:, 1 : TOKENS + 1].clone()
        labels[:, 0] = labels[:, 0].masked_fill(untimed[:, 0], IGNORED)  # given, not to be guessed
        return inputs, labels


def _places(length: Tensor, joined: Tensor) -> tuple[Tensor, Tensor]:
    """First and last frame of each clip, in order with gaps between: short ones in a string, longer after sentences."""
    chance = torch.rand(length.shape, device=length.device)
    wide = torch.rand(len(length), 1, device=length.device) * 25
    gap = torch.where(joined, 3 + wide * chance * 2, 15 + 70 * chance)
    gap[:, 0] = 2 + 40 * torch.rand(len(length), device=length.device).square()
    last = (length + gap).cumsum(1)
    return last - length, last


def _groups(kinds: list[tuple[str, str]], device: torch.device) -> Groups:
    """Runs of one part and voice, and runs of one part; strings make up half of the windows."""
    rows = list[tuple[int, int, int, bool, float]]()
    begin = 0
    for (part, _), run in groupby(kinds):
        count = len(list(run))
        joined = part != "sentences"
        if joined:
            share = 0.25 * count / sum(kind == part for kind, _ in kinds) * (1 - MIXED)
            rows.append((begin, count, PIECES, True, share))
        begin += count
    begin = 0
    for part, run in groupby(kind for kind, _ in kinds):
        count = len(list(run))
        joined = part != "sentences"
        rows.append((begin, count, PIECES if joined else 3, joined, 0.25 * MIXED if joined else 0.5))
        begin += count
    first, count, most, joined, share = zip(*rows, strict=True)
    until = torch.tensor(share, device=device).cumsum(0)
    return Groups(
        *(torch.tensor(values, device=device) for values in (first, count, most, joined)), until=until / until[-1]
    )

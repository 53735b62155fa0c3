"""How well the small Whisper hears speakers that no training heard: word error rates by greedy search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast

from scripts.pretrain.speech_codec import BLOCK, DEPTH, MELS, blocks_of
from scripts.pretrain.speech_store import Clip, Corpus
from scripts.pretrain.whisper_pool import FRAMES
from scripts.pretrain.whisper_sound import features

USUAL = 1.0
"""Logarithm to base 10 of the power at the loudest spot of usual recordings."""


def word_errors(reference: str, hypothesis: str) -> int:
    """The least number of words to put in, leave out or replace, by dynamic programming."""
    said, heard = reference.split(), hypothesis.split()
    row = list(range(len(heard) + 1))
    for index, word in enumerate(said, start=1):
        before, row = row, [index]
        for place, other in enumerate(heard):
            row.append(min(row[-1] + 1, before[place + 1] + 1, before[place] + (word != other)))
    return row[-1]


def error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors over words, of all texts together."""
    pairs = zip(references, hypotheses, strict=True)
    return sum(word_errors(*pair) for pair in pairs) / sum(len(text.split()) for text in references)


def windows(clips: Sequence[Clip], frames: Tensor) -> Tensor:
    """Each clip's features at the beginning of its own window: [clips, MELS, FRAMES]."""
    power, start = torch.full((len(clips), FRAMES, MELS), -2 * DEPTH, device=frames.device), 0
    for window, clip in zip(power, clips, strict=True):
        window[: clip.frames] = frames[start : start + clip.frames].float()
        start += blocks_of(clip.frames) * BLOCK
    return features(power + USUAL)


@torch.no_grad()
def transcripts(
    model: WhisperForConditionalGeneration, words: WhisperTokenizerFast, heard: Tensor, batch: int = 64
) -> list[str]:
    """What the model writes, by greedy search."""
    texts = list[str]()
    for some in heard.split(batch):
        ids = model.generate(some, do_sample=False, num_beams=1)
        texts += [text.strip() for text in words.batch_decode(ids, skip_special_tokens=True)]
    return texts


def figures(
    model: WhisperForConditionalGeneration, words: WhisperTokenizerFast, corpus: Corpus
) -> tuple[dict[str, float], list[tuple[str, str, str]]]:
    """Word error rate by left-out voice, and voice, text and transcript of every clip."""
    clips = corpus.of("measured")
    texts = transcripts(model, words, windows(clips, corpus.frames["measured"].to(model.device)))
    rows = [(clip.voice, clip.text, text) for clip, text in zip(clips, texts, strict=True)]
    voices = dict.fromkeys(voice for voice, _, _ in rows)
    chosen = {voice: [row[1:] for row in rows if row[0] == voice] for voice in voices}
    return {voice: error_rate(*zip(*some, strict=True)) for voice, some in chosen.items()}, rows

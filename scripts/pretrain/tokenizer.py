"""A small CLIP tokenizer: byte-level BPE learnt from captions, in the two files that every CLIP tokenizer reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

from scripts.pretrain.concepts import COMMON_WORDS

LENGTH = 77
"""Tokens per prompt, begin and end included, as in Stable Diffusion 1."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_merges(captions: Iterable[str], vocabulary: int, least: int = 2) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, for at most ``vocabulary`` tokens in all (Sennrich et al. 2016).

    Of pairs equally frequent the alphabetically first is merged, so the same captions give the same merges; libraries
    break such ties by chance. Pairs seen fewer than ``least`` times are left apart.
    """
    words = {(*word[:-1], word[-1] + "</w>"): count for word, count in _words(captions).items()}
    return learn_pairs(words, vocabulary - 2 * 256 - 2, least)


def learn_pairs(words: Mapping[tuple[str, ...], int], most: int, least: int = 2) -> list[tuple[str, str]]:
    """At most ``most`` merges of words as symbols -> how often each comes; ties go to the alphabetically first pair."""
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < least:
            break
        merges.append(best)
        words = {_merged(word, best): count for word, count in words.items()}
    return merges


def _words(captions: Iterable[str]) -> Counter[str]:
    """Words of lower-cased captions, their bytes as CLIP's tokenizer spells them, and how often each comes."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Counter(word for caption in captions for word, _ in split.pre_tokenize_str(caption.lower()))


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word with every occurrence of the pair joined."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def write_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> None:
    """Write ``vocab.json``, ``merges.txt`` and the settings files.

    Every byte is a token, alone and as the end of a word, so any text at all can be encoded.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += [token for token in dict.fromkeys(left + right for left, right in merges) if token not in set(tokens)]
    tokens += [BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | special, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def corpus(captions: list[str]) -> list[str]:
    """Captions and, with them, common words that no caption holds, so that free text is not cut to letters."""
    return captions + COMMON_WORDS.split() * 3

"""The small Whisper's tokenizer: byte-level BPE learnt from the corpus, and Whisper's special tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, pre_tokenizers
from transformers import WhisperTokenizerFast

from scripts.pretrain.tokenizer import learn_pairs

WINDOW = 10.0
"""Seconds that the model hears at once."""
END, START, SILENT, UNTIMED = "<|endoftext|>", "<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>"
SPECIAL = (START, "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", SILENT, UNTIMED)
"""In Whisper's order; times follow."""
TIMES = int(WINDOW * 50) + 1
"""Times are every 20 ms."""


def learn_words(texts: Iterable[str], merges: int = 240) -> WhisperTokenizerFast:
    """A tokenizer of 256 bytes, at most ``merges`` joined pairs and the special tokens; texts begin with a space."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(f" {text}"))
    pairs = learn_pairs({tuple(word): count for word, count in words.items()}, merges)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += dict.fromkeys(left + right for left, right in pairs)
    names = {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": END}
    vocabulary = {token: index for index, token in enumerate([*tokens, END])}
    made = WhisperTokenizerFast(vocab=vocabulary, merges=pairs, model_max_length=1024, **names)
    made.add_special_tokens({"additional_special_tokens": [_special(token) for token in SPECIAL]})
    made.add_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", normalized=False, special=False) for index in range(TIMES)])
    return made


def _special(token: str) -> AddedToken:
    return AddedToken(token, normalized=False, special=True)

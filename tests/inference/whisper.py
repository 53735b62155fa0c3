"""A tiny Whisper with random weights and a tokenizer of bytes, as a base; and what stands for loading one."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from visionpeft.models import speech
from visionpeft.models.speech import SpeechBase
from visionpeft.models.whisper import WHISPER

LANGUAGES = ("en", "de", "mr")
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in LANGUAGES), "<|translate|>",
    "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
TIMES = tuple(f"<|{0.02 * tick:.2f}|>" for tick in range(1501))


def tokenizer(multilingual: bool) -> WhisperTokenizer:
    special = [token for token in SPECIAL if multilingual or token.strip("<|>") not in LANGUAGES]
    table = {symbol: number for number, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    built = Tokenizer(models.BPE(vocab=table, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(special)
    built.add_tokens(list(TIMES))
    end = "<|endoftext|>"
    return WhisperTokenizer(tokenizer_object=built, unk_token=end, bos_token=end, eos_token=end, pad_token=end)


def tiny_whisper(seed: int = 0, *, multilingual: bool = False) -> SpeechBase:
    words = tokenizer(multilingual)
    ids = {token: words.convert_tokens_to_ids(token) for token in (*SPECIAL, TIMES[0])}
    config = WhisperConfig(
        vocab_size=len(words), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80, init_std=0.3,
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"], max_target_positions=64,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config).eval()
    spoken = {
        "lang_to_id": {f"<|{name}|>": ids[f"<|{name}|>"] for name in LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id, max_length=64, is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"], suppress_tokens=[1, 2],
        begin_suppress_tokens=[config.eos_token_id], **(spoken if multilingual else {}),
    )  # fmt: skip
    return SpeechBase(model, words, WHISPER, "tiny-whisper", "", WhisperFeatureExtractor(feature_size=80))


def noise(seed: int, seconds: float) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=round(16_000 * seconds)) * 0.1).astype(np.float32)


def stand_in(monkeypatch, base: SpeechBase) -> list[str]:
    """Let every base that is loaded be this one; return the list that the names are put into."""
    asked: list[str] = []

    def load_speech(ref, **options):
        asked.append(str(ref))
        return base

    monkeypatch.setattr(speech, "load_speech", load_speech)
    return asked

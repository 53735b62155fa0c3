"""Tiny Whispers with random weights as folders of transformers, and tables of made-up speech."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from visionpeft.data.speech.audio import RATE
from visionpeft.models import speech
from visionpeft.models.quiet import without_loading_bars, without_reports
from visionpeft.models.speech import SpeechBase, load_speech
from visionpeft.models.whisper import WHISPER

SECONDS = 2
"""What a tiny Whisper hears at once."""
SILENT = "<|nospeech|>"
_LANGUAGES = ("en", "mr", "de")


def _tokenizer(*, multilingual: bool, seconds: int) -> WhisperTokenizerFast:
    """One token a byte, and Whisper's special ones in its order."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>"]
    special += [f"<|{name}|>" for name in _LANGUAGES] if multilingual else []
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", SILENT, "<|notimestamps|>"]
    plain = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(special)
    plain.add_tokens([f"<|{tick * 0.02:.2f}|>" for tick in range(seconds * 50 + 1)])
    return WhisperTokenizerFast(tokenizer_object=plain, unk_token=special[0], bos_token=special[0],
                                eos_token=special[0], pad_token=special[0])  # fmt: skip


def new_whisper(
    *,
    multilingual: bool = True,
    seed: int = 0,
    tokens: int = 64,
    seconds: int = SECONDS,
    std: float = 0.15,
    layers: tuple[int, int] = (2, 2),
) -> WhisperForConditionalGeneration:
    """A tiny Whisper."""
    tokenizer = _tokenizer(multilingual=multilingual, seconds=seconds)
    ids = tokenizer.get_vocab()
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=layers[0], decoder_layers=layers[1],
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=80,
        max_source_positions=seconds * 50, max_target_positions=tokens, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=start, begin_suppress_tokens=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), without_reports():
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "encoder.embed_positions" not in name:
                torch.nn.init.normal_(parameter, std=std)
    known = {"lang_to_id": {f"<|{name}|>": ids.get(f"<|{name}|>") for name in _LANGUAGES},
             "task_to_id": {name: ids.get(f"<|{name}|>") for name in ("transcribe", "translate")}}  # fmt: skip
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end, max_length=tokens,
        no_timestamps_token_id=ids["<|notimestamps|>"], is_multilingual=multilingual, max_initial_timestamp_index=50,
        suppress_tokens=[ids[SILENT]], begin_suppress_tokens=[end], **(known if multilingual else {}),
    )  # fmt: skip
    return model.eval()


def write_whisper(folder: Path, *, multilingual: bool = True, seed: int = 0, tokens: int = 64) -> Path:
    """Write a tiny Whisper, and return its folder."""
    with without_reports(), without_loading_bars():
        new_whisper(multilingual=multilingual, seed=seed, tokens=tokens, seconds=SECONDS).save_pretrained(folder)
    _tokenizer(multilingual=multilingual, seconds=SECONDS).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=SECONDS).save_pretrained(folder)
    return folder


def tiny_whisper(folder: Path, **more: object) -> SpeechBase:
    """A tiny Whisper, loaded."""
    return load_speech(write_whisper(folder, **more))  # pyright: ignore[reportArgumentType]


def whole_whisper(seed: int = 0, *, multilingual: bool = False, layers: tuple[int, int] = (2, 2)) -> SpeechBase:
    """A tiny Whisper that hears 30 seconds as all published ones do, and no folder of it."""
    model = new_whisper(multilingual=multilingual, seed=seed, seconds=30, std=0.3, layers=layers)
    words = _tokenizer(multilingual=multilingual, seconds=30)
    return SpeechBase(model, words, WHISPER, "tiny-whisper", "", WhisperFeatureExtractor())


def noise(seed: int, seconds: float) -> np.ndarray:
    """Noise, float32 at 16 kHz."""
    return (np.random.default_rng(seed).normal(size=round(RATE * seconds)) * 0.1).astype(np.float32)


def stand_in(monkeypatch: pytest.MonkeyPatch, base: SpeechBase) -> list[str]:
    """Let every base that is loaded be this one; return the list that the names are put into."""
    asked: list[str] = []

    def load(ref: object, **_: object) -> SpeechBase:
        asked.append(str(ref))
        return base

    monkeypatch.setattr(speech, "load_speech", load)
    return asked


def tone(seconds: float, pitch: float) -> np.ndarray:
    """A sine with a little noise, float32 at 16 kHz."""
    rng = np.random.default_rng(round(pitch))
    times = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * pitch * times) + 0.01 * rng.standard_normal(len(times))).astype(np.float32)


def write_speech(folder: Path, count: int = 16) -> Path:
    """Write a table of tones by four speakers, and return it."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    words = ("low", "high", "deep one", "a shrill one")
    with (folder / "speech.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "speaker"])
        for number in range(count):
            pitch = (110, 880, 60, 1760)[number % 4] * (1 + number / 400)
            soundfile.write(folder / f"{number}.wav", tone(0.4 + 0.05 * (number % 5), pitch), RATE)
            writer.writerow([f"{number}.wav", words[number % 4], f"s{number // 4}"])
    return folder / "speech.csv"


def speech_settings(folder: Path, **more: object) -> dict[str, object]:
    """Settings of a short run on ``folder/base`` and ``folder/speech``."""
    settings = {
        "task": "transcribe",
        "base": str(folder / "base"),
        "language": "mr",
        "data": {"source": {"format": "table", "path": str(folder / "speech" / "speech.csv")},
                 "split": {"by": "speaker"}, "bucket": 8, "workers": 1},
        "adapter": {"method": "lora", "rank": 2},
        "train": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "evaluate_every": 2, "log_every": 1},
        "output": str(folder / "out"),
    }  # fmt: skip
    return json.loads(json.dumps(settings | more))

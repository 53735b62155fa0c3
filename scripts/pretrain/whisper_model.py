"""The small Whisper: its shape, its forward pass without a wait for the host, and the folder that is shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from scripts.pretrain.speech_codec import MELS
from scripts.pretrain.whisper_pool import FRAMES, TOKENS
from scripts.pretrain.whisper_words import START, UNTIMED, WINDOW

LIMIT = 10_000_000
"""Bytes of the weights."""


def configuration(words: WhisperTokenizerFast) -> WhisperConfig:
    """A Whisper of width 256 that hears 10 s."""
    end, start = words.eos_token_id, words.convert_tokens_to_ids(START)
    return WhisperConfig(
        vocab_size=len(words), num_mel_bins=MELS, d_model=256, encoder_layers=4, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=640, decoder_ffn_dim=640,
        max_source_positions=FRAMES // 2, max_target_positions=TOKENS, bos_token_id=end, eos_token_id=end,
        pad_token_id=end, decoder_start_token_id=start, begin_suppress_tokens=None,
    )  # fmt: skip


def generation(words: WhisperTokenizerFast) -> GenerationConfig:
    """English only: it is told neither language nor task."""
    end, start = words.eos_token_id, words.convert_tokens_to_ids(START)
    return GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=TOKENS,
        no_timestamps_token_id=words.convert_tokens_to_ids(UNTIMED), is_multilingual=False, return_timestamps=False,
        max_initial_timestamp_index=50,
    )  # fmt: skip


def make_whisper(words: WhisperTokenizerFast) -> WhisperForConditionalGeneration:
    """The network with random weights."""
    model = WhisperForConditionalGeneration(configuration(words))
    model.generation_config = generation(words)
    return model


def logits(model: WhisperForConditionalGeneration, heard: Tensor, inputs: Tensor) -> Tensor:
    """What it writes next after each token: [batch, tokens, vocabulary].

    The decoder's layers are called one by one, because the library looks into the tokens on the host to make a mask.
    """
    decoder = model.model.decoder
    sound = model.model.encoder(heard).last_hidden_state
    count = inputs.shape[1]
    hidden = decoder.embed_tokens(inputs) + decoder.embed_positions.weight[:count]
    mask = torch.full((count, count), float("-inf"), device=inputs.device, dtype=hidden.dtype).triu(1)[None, None]
    for layer in decoder.layers:
        found = layer(hidden, attention_mask=mask, encoder_hidden_states=sound, use_cache=False)
        hidden = found[0] if isinstance(found, tuple) else found
    return model.proj_out(decoder.layer_norm(hidden))


def pack(weights: Mapping[str, Tensor], words: WhisperTokenizerFast, folder: Path) -> None:
    """Write a folder of transformers, its weights in float16.

    Raises:
        ValueError: the weights exceed 10 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {
        name: value.detach().half().cpu().contiguous() for name, value in weights.items() if name != "proj_out.weight"
    }
    save_file(half, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").replace(folder / "model.safetensors")
    config = configuration(words).to_dict() | {"architectures": ["WhisperForConditionalGeneration"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation(words).save_pretrained(folder)
    words.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MELS, chunk_length=int(WINDOW)).save_pretrained(folder)
    if (size := (folder / "model.safetensors").stat().st_size) > LIMIT:
        raise ValueError(f"the weights are too large: {size} bytes, more than {LIMIT}")

"""Whisper as a family, and how it is loaded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig

from tests.tiny_speech import new_whisper, tiny_whisper, write_whisper
from visionpeft.adapters.spec import LoraSpec, VptSpec
from visionpeft.errors import AdapterError, BaseModelError, ConfigError, TargetError
from visionpeft.models.base import load_base
from visionpeft.models.family import family_of
from visionpeft.models.manage import manage
from visionpeft.models.speech import load_speech
from visionpeft.models.vision import load_vision

TARGETS = {
    "attention": 24, "attention.q": 6, "self-attention": 16, "self-attention.v": 4, "cross-attention": 8,
    "cross-attention.out": 2, "mlp": 8, "conv": 2, "encoder": 14, "decoder": 20, "encoder.attention": 8,
    "encoder.mlp": 4, "encoder.conv": 2, "decoder.self-attention.k": 2, "decoder.cross-attention": 8,
    "all-linear": 32,
}  # fmt: skip


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_targets_name_the_layers_of_their_part(target):
    model = new_whisper()
    manager = manage(model)
    manager.add("a", LoraSpec(rank=1, targets=target))
    places = {key.rsplit(".lora_", 1)[0] for key in manager.parameters("a")}
    assert len(places) == TARGETS[target]
    part = target.partition(".")[0]
    if part in ("encoder", "decoder"):
        assert all(f"model.{part}." in place for place in places)
    if "cross" in target:
        assert all(".encoder_attn." in place for place in places)


def test_the_words_are_no_target_of_all_linear_and_positions_never_train():
    family = family_of(new_whisper())
    assert family.name == "whisper"
    layers = {path: torch.nn.Linear(1, 1) for path in ("proj_out", "model.encoder.layers.0.fc1")}
    assert family.resolve("model", layers, "all-linear") == ["model.encoder.layers.0.fc1"]
    assert family.fixed("model", "model.encoder.embed_positions.weight")
    assert not family.fixed("model", "model.decoder.embed_positions.weight")


def test_a_target_of_the_encoder_that_only_the_decoder_has_is_an_error():
    with pytest.raises(TargetError, match=r"encoder.cross-attention"):
        manage(new_whisper()).add("a", LoraSpec(targets="encoder.cross-attention"))


def test_vpt_is_for_pictures():
    with pytest.raises(AdapterError, match="of the family 'whisper' has none"):
        manage(new_whisper()).add("a", VptSpec())


def test_a_base_knows_its_languages_and_hash(tmp_path: Path):
    many, one = tiny_whisper(tmp_path / "many"), tiny_whisper(tmp_path / "one", multilingual=False)
    assert many.multilingual
    assert set(many.languages) == {"en", "mr", "de"}
    assert not one.multilingual
    assert one.languages == ("en",)
    assert many.window == 2.0
    half = load_speech(tmp_path / "many", dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.hash == many.hash != one.hash
    assert many.model.config.apply_spec_augment is False


def test_scratch_is_a_function_of_the_seed(tmp_path: Path):
    write_whisper(tmp_path)
    hashes = [load_speech(tmp_path, scratch=True, seed=seed).hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert load_speech(tmp_path, scratch=True).multilingual


def test_what_is_no_whisper_is_refused_by_name(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"no config.json"):
        load_speech(tmp_path)
    with pytest.raises(BaseModelError, match=r"there is no such base"):
        load_speech(tmp_path / "nothing")
    write_whisper(tmp_path / "w")
    (tmp_path / "w" / "model.safetensors").rename(tmp_path / "w" / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="pickles are not loaded"):
        load_speech(tmp_path / "w")
    write_whisper(tmp_path / "v")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    (tmp_path / "v" / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(BaseModelError, match="is a 'vit', not a Whisper"):
        load_speech(tmp_path / "v")
    write_whisper(tmp_path / "g")
    told = json.loads((tmp_path / "g" / "generation_config.json").read_text())
    told.pop("no_timestamps_token_id")
    (tmp_path / "g" / "generation_config.json").write_text(json.dumps(told))
    with pytest.raises(BaseModelError, match="has no no_timestamps_token_id"):
        load_speech(tmp_path / "g")


SIZES = {  # encoder layers, decoder layers, width: OpenAI's model card, and Distil-Whisper's
    "tiny": (4, 4, 384), "base": (6, 6, 512), "small": (12, 12, 768), "medium": (24, 24, 1024),
    "large-v3": (32, 32, 1280), "large-v3-turbo": (32, 4, 1280), "distil-large-v3": (32, 2, 1280),
}  # fmt: skip


@pytest.mark.parametrize("size", sorted(SIZES))
def test_q_and_v_of_every_size(size):
    from transformers import WhisperForConditionalGeneration

    encoder, decoder, width = SIZES[size]
    config = WhisperConfig(
        encoder_layers=encoder, decoder_layers=decoder, d_model=width, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, encoder_attention_heads=width // 64, decoder_attention_heads=width // 64,
        num_mel_bins=128 if "v3" in size else 80,
    )  # fmt: skip
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    family = family_of(model)
    layers = {path: model.get_submodule(actual) for path, actual in family.layers("model", model).items()}
    found = family.resolve("model", layers, ("attention.q", "attention.v"))
    kinds = Counter(path.rsplit(".", 1)[1] for path in found)
    assert kinds == {"q_proj": encoder + 2 * decoder, "v_proj": encoder + 2 * decoder}
    assert sum(p.numel() for p in model.parameters()) > 3e7


def test_rank_16_on_q_and_v_of_tiny_en_is_small(tmp_path: Path):
    from transformers import WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, pad_token_id=50256,
        bos_token_id=50256, eos_token_id=50256, decoder_start_token_id=50257,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    manager = manage(model)
    whole = sum(parameter.numel() for parameter in model.parameters())
    manager.add("a", LoraSpec(rank=16, targets=("attention.q", "attention.v")))
    own = sum(parameter.numel() for parameter in manager.parameters("a").values())
    assert own <= 0.008 * whole
    assert manager.capture("a").save(tmp_path / "a.safetensors").stat().st_size <= 1.3e6


def test_a_shortened_base_hears_the_first_of_what_it_heard(tmp_path: Path):
    whole, short = tiny_whisper(tmp_path / "a"), tiny_whisper(tmp_path / "b")
    short.shorten(1)
    assert (whole.window, short.window) == (2.0, 1.0)
    assert short.hash == whole.hash
    sound = np.random.default_rng(0).standard_normal(12_000).astype(np.float32)
    long, cut = (b.features(sound, sampling_rate=16_000, return_tensors="pt").input_features for b in (whole, short))
    assert (long.shape[2], cut.shape[2]) == (200, 100)
    encoder = whole.model.model.encoder
    kept = encoder.embed_positions.weight[:50]
    assert torch.equal(short.model.model.encoder.embed_positions.weight, kept)
    with torch.no_grad():
        by_hand = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(cut)))).mT + kept
        for layer in encoder.layers:
            by_hand = layer(by_hand, None)
        heard = short.model.model.encoder(cut).last_hidden_state
    assert torch.allclose(heard, encoder.layer_norm(by_hand), atol=1e-6)
    with pytest.raises(ConfigError, match=r"data.window: 3 s, but .* hears 1 s at once"):
        short.shorten(3)


def test_the_embedded_whisper_is_there_and_other_names_of_ours_are_told_at_once():
    base = load_speech("visionpeft/small-whisper")
    assert base.window == 10
    assert base.languages == ("en",)
    assert base.family.name == "whisper"
    for name in ("visionpeft/smal-whisper", "visionpeft/emoji-vit"):
        with pytest.raises(BaseModelError, match=r"is not an embedded base .* mean 'visionpeft/small-whisper'"):
            load_speech(name)
    with pytest.raises(BaseModelError, match="Did you mean 'visionpeft/emoji-vit'"):
        load_vision("visionpeft/emoji-vti", task="classify")
    with pytest.raises(BaseModelError, match="Did you mean 'visionpeft/emoji-sd'"):
        load_base("visionpeft/emojisd")

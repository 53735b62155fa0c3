"""Bases from folders and ids, and what their text encoders hear."""

import json
import shutil

import pytest
import torch

from tests.adapters.cases import base_of
from tests.tiny import tiny_sd1, tiny_sd2, tiny_sdxl
from visionpeft.errors import BaseModelError, ConfigError
from visionpeft.models.base import load_base
from visionpeft.models.manage import manage
from visionpeft.models.prompts import encode_prompts, time_ids, token_ids, unet_forward

BUILDS = {"sd1": tiny_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}
PROMPTS = ["a photo of a red dog", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    for name, build in BUILDS.items():
        build().save_pretrained(root / name)
    return root


@pytest.mark.parametrize("kind", sorted(BUILDS))
def test_a_folder_loads_as_what_it_is(folders, kind):
    base = load_base(folders / kind)
    assert base.family.name == kind
    assert base.id == str(folders / kind)
    assert base.size == 32
    assert base.latent_scale_factor == 2
    assert base.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    there = BUILDS[kind]().unet.state_dict()
    assert all(torch.equal(value, there[key]) for key, value in base.unet.state_dict().items())
    assert manage(base).base_hash == base.hash


def test_the_hash_tells_weights_apart_and_not_number_types(folders, tmp_path):
    base = load_base(folders / "sd1")
    assert len(base.hash) == 64
    assert load_base(folders / "sd1").hash == base.hash
    assert load_base(folders / "sd1", dtype=torch.float16).hash == base.hash
    bf16 = load_base(folders / "sd1", dtype=torch.bfloat16)
    assert bf16.hash == base.hash
    assert bf16.unet.dtype == torch.bfloat16
    tiny_sd1().save_pretrained(tmp_path / "half", variant="fp16")
    tiny_sd1().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert load_base(tmp_path / "half").hash == base.hash
    tiny_sd1(seed=1).save_pretrained(tmp_path / "other")
    assert load_base(tmp_path / "other").hash != base.hash


@pytest.mark.parametrize("kind", sorted(BUILDS))
def test_prompts_are_encoded_as_the_pipeline_does(kind):
    pipeline = BUILDS[kind]()
    base = base_of(pipeline)
    states = encode_prompts(base, PROMPTS)
    options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "device": "cpu"}
    theirs = pipeline.encode_prompt(PROMPTS, **options)
    assert torch.equal(states.hidden, theirs[0])
    if kind == "sdxl":
        assert torch.equal(states.pooled, theirs[2])
        assert states.pooled.shape == (2, 32)
        assert torch.equal(time_ids(base, 2, (24, 32)), torch.tensor([[24, 32, 0, 0, 24, 32]] * 2).float())
    else:
        assert states.pooled is None
        assert time_ids(base, 2) is None
        with pytest.raises(ConfigError, match="clip_skip is 1; this text encoder has 2 layers: take 0 to 0"):
            encode_prompts(base, PROMPTS, clip_skip=1)
    out = unet_forward(base, torch.zeros(2, 4, 16, 16), torch.tensor([1, 2]), states, time_ids(base, 2))
    assert out.shape == (2, 4, 16, 16)


def test_prompts_are_padded_to_77():
    base = base_of(tiny_sdxl())
    assert token_ids(base, "text_encoder", ["a", "a dog " * 60]).shape == (2, 77)
    assert token_ids(base, "text_encoder_2", ["a"])[0, -1] == base.pipeline.tokenizer_2.convert_tokens_to_ids("!")


def test_gradients_reach_text_encoders():
    base = base_of(tiny_sdxl())
    states = encode_prompts(base, ["a red dog"])
    (states.hidden.sum() + states.pooled.sum()).backward()
    assert base.pipeline.text_encoder.get_input_embeddings().weight.grad.any()
    assert base.pipeline.text_encoder_2.text_projection.weight.grad.any()


def test_what_cannot_be_loaded_says_why(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ref, message in (
        (tmp_path / "nothing", "there is no such base, folder or checkpoint"),
        (tmp_path / "model.ckpt", "'.ckpt' file may run code when loaded; convert it to .safetensors"),
        (tmp_path, "no model_index.json there"),
        (tmp_path / "x.safetensors", "there is no such base"),
        (folders / "sd3", r"Did you mean '.*/sd\d'\?"),
        ("visionpeft/emojisd", r"not an embedded base for this.*Did you mean 'visionpeft/emoji-sd'\?"),
    ):
        with pytest.raises(BaseModelError, match=message):
            load_base(ref)


def test_damaged_folders_are_refused(folders, tmp_path):
    damaged = tmp_path / "sd1"
    shutil.copytree(folders / "sd1", damaged)
    weights = next((damaged / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(damaged)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BaseModelError, match=r"unet: no .safetensors there; convert"):
        load_base(damaged)
    index = damaged / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(BaseModelError):
        load_base(damaged)
    index.write_text("{")
    with pytest.raises(BaseModelError, match="cannot be read as a pipeline's index"):
        load_base(damaged)


def test_the_embedded_base_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("visionpeft.models.base.ASSETS", tmp_path)
    with pytest.raises(BaseModelError, match="embedded base 'visionpeft/emoji-sd' is not in this installation"):
        load_base("visionpeft/emoji-sd")

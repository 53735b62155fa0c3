"""Single checkpoints: small ones loaded whole, and the published sizes' names and shapes without values."""

import pytest
import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from tests.models.originals import checkpoint, nested, parts
from tests.tiny import tiny_tokenizer
from visionpeft.errors import BaseModelError, FileFormatError
from visionpeft.models import original
from visionpeft.models.base import load_base
from visionpeft.models.prompts import encode_prompts, time_ids, unet_forward

KINDS = ("sd1", "sd2", "sdxl")
WORDS = len(tiny_tokenizer())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    made = {}
    for kind in KINDS:
        torch.manual_seed(0)
        models = parts(kind, full=False, words=WORDS)
        state = {k: v.half().contiguous() for k, v in checkpoint(kind, *models).items()}
        safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, folder / f"{kind}.safetensors")
        made[kind] = (folder / f"{kind}.safetensors", models)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_loads_without_a_network(files, kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path, (unet, vae, first, second) = files[kind]
    base = load_base(path, prediction_type="v_prediction" if kind == "sd2" else None)
    assert base.family.name == kind
    assert base.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    for mine, theirs in zip(
        (base.unet, base.vae, *base.text_encoders.values()), (unet, vae, first, second), strict=False
    ):
        there = theirs.state_dict()
        assert mine.state_dict().keys() == there.keys()
        assert all(torch.equal(value, there[key].half().float()) for key, value in mine.state_dict().items())
    for key, value in unet.config.items():
        if key not in ("_use_default_values", "_name_or_path", "transformer_layers_per_block", "attention_head_dim"):
            assert base.unet.config[key] == value, key
    # and it runs: the loaded UNet says what the original one does
    states = encode_prompts(base, ["a red dog"])
    noise, step = torch.randn(1, 4, 8, 8), torch.tensor([5])
    mine = unet_forward(base, noise, step, states, time_ids(base, 1))
    base.pipeline.register_modules(unet=unet.half().float())
    assert torch.equal(mine, unet_forward(base, noise, step, states, time_ids(base, 1)))
    if kind != "sd1":
        assert (
            base.pipeline.tokenizer_2.pad_token == "!" if kind == "sdxl" else base.pipeline.tokenizer.pad_token == "!"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_sizes_are_recognised_by_names_and_shapes(kind):
    with torch.device("meta"):
        unet, vae, first, second = models = parts(kind, full=True)
        state = checkpoint(kind, *models)
    assert original.family_name(state) == kind
    config = original.unet_config(state, kind, "v_prediction" if kind == "sd2" else "epsilon")
    for key, value in config.items():
        expected = unet.config[key]
        if key == "transformer_layers_per_block" and isinstance(expected, int):
            expected = (expected,) * len(value)
        if key == "attention_head_dim" and not isinstance(expected, int):
            expected = tuple(expected)
        assert value == (tuple(expected) if isinstance(expected, list) else expected), key
    for key, value in original.vae_config(state, kind).items():
        assert key == "sample_size" or vae.config[key] == value, key
    for mine, theirs in (
        (original.unet_state(state), unet.state_dict()),
        (original.vae_state(state), vae.state_dict()),
        (original.text_state(state, kind, "text_encoder"), nested(first)),
        *([(original.text_state(state, kind, "text_encoder_2"), nested(second))] if second else []),
    ):
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    for name, model in (("text_encoder", first), *([("text_encoder_2", second)] if second else [])):
        text = original.text_state(state, kind, name)
        found = original.text_config(text, open_clip=original.ENCODERS[kind][name][1])
        assert {key: getattr(model.config, key) for key in found} == found


@pytest.mark.parametrize("kind", KINDS)
def test_names_agree_with_the_converters_of_diffusers(kind):
    with torch.device("meta"):
        state = checkpoint(kind, *parts(kind, full=True))
    unet = convert_ldm_unet_checkpoint(dict(state), original.unet_config(state, kind, "epsilon"))
    mine = original.unet_state(state)
    assert {k: v.shape for k, v in unet.items()} == {k: v.shape for k, v in mine.items()}
    assert all(unet[key] is mine[key] for key in mine)
    vae = convert_ldm_vae_checkpoint(dict(state), original.vae_config(state, kind))
    mine = original.vae_state(state)
    assert {k: v.numel() for k, v in vae.items()} == {k: v.numel() for k, v in mine.items()}


def test_sd2_must_be_told_what_it_predicts(files, tmp_path):
    path, _ = files["sd2"]
    with pytest.raises(BaseModelError, match="pass prediction_type='v_prediction'"):
        load_base(path)
    with pytest.raises(BaseModelError, match="prediction_type is 'x'"):
        load_base(path, prediction_type="x")
    told = path.parent / "told.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), told, {"modelspec.prediction_type": "v"})
    assert load_base(told).prediction_type == "v_prediction"
    state = safetensors.torch.load_file(files["sd1"][0]) | {"v_pred": torch.zeros(0)}
    safetensors.torch.save_file(state, told)
    assert load_base(told).prediction_type == "v_prediction"


FAULTS = {
    "no unet": (lambda s: {k: v for k, v in s.items() if "diffusion_model" not in k}, "No UNet is in it"),
    "no vae": (lambda s: {k: v for k, v in s.items() if "first_stage" not in k}, "No autoencoder is in it"),
    "no text": (lambda s: {k: v for k, v in s.items() if "cond_stage" not in k}, "No text encoder of SD"),
    "missing": (
        lambda s: {k: v for k, v in s.items() if not k.endswith("input_blocks.1.0.in_layers.2.bias")},
        r"The UNet misses tensor 'down_blocks.0.resnets.0.conv1.bias'",
    ),
    "missing for its size": (lambda s: {k: v for k, v in s.items() if "out.2" not in k}, "not a whole checkpoint"),
    "unexpected": (
        lambda s: s | {"model.diffusion_model.middle_block.0.more": torch.zeros(1)},
        "has an unexpected tensor 'mid_block.resnets.0.more'",
    ),
    "shape": (
        lambda s: s | {"model.diffusion_model.time_embed.0.bias": torch.zeros(3)},
        r"'time_embedding.linear_1.bias' is \(3,\), expected \(128,\)",
    ),
    "inpainting": (
        lambda s: s | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
        "for inpainting or depth",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_faults_name_file_and_part(files, tmp_path, fault):
    spoil, message = FAULTS[fault]
    path = files["sd1"][0].parent / "bad.safetensors"
    safetensors.torch.save_file(spoil(safetensors.torch.load_file(files["sd1"][0])), path)
    with pytest.raises(BaseModelError, match=message) as caught:
        load_base(path)
    assert str(path) in str(caught.value)


def test_a_missing_tokenizer_says_what_to_pass(files, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(files["sd1"][0].read_bytes())
    with pytest.raises(BaseModelError, match=r"holds no tokenizer, .*pass tokenizer=, a folder with CLIP's vocab.json"):
        load_base(alone)
    with pytest.raises(BaseModelError, match="has none"):
        load_base(alone, tokenizer=tmp_path)
    assert load_base(alone, tokenizer=files["sd1"][0].parent).family.name == "sd1"
    assert load_base(alone, tokenizer={"text_encoder": tiny_tokenizer()}).family.name == "sd1"
    larger = tiny_tokenizer()
    larger.add_tokens(["<more>"])
    with pytest.raises(BaseModelError, match=f"has {WORDS + 1} tokens, the text_encoder of .* only {WORDS}"):
        load_base(alone, tokenizer={"text_encoder": larger})


def test_a_truncated_checkpoint_is_refused(files, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(files["sd1"][0].read_bytes()[:-100])
    with pytest.raises(FileFormatError, match="is truncated"):
        load_base(bad)


def test_folder_and_checkpoint_of_the_same_weights_have_the_same_hash(files, tmp_path):
    path, _ = files["sd1"]
    base = load_base(path)
    base.pipeline.save_pretrained(tmp_path / "folder")
    assert load_base(tmp_path / "folder").hash == base.hash
    assert load_base(files["sdxl"][0]).hash != base.hash

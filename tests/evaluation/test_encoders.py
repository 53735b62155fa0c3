from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPTextModel

from tests.evaluation import towers
from tests.evaluation.runs import picture
from visionpeft.errors import BaseModelError
from visionpeft.evaluation.encoders import load_encoder
from visionpeft.models.preprocess import read_processor

PICTURES = [picture(0), picture(90, 64), picture(180, 48, "rectangle").resize((80, 48))]
TEXTS = ["a photo of a red robot", "a blue apple on a red background"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return towers.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = towers.base_with_clip(tmp_path_factory.mktemp("base"))
    return SimpleNamespace(pipeline=SimpleNamespace(name_or_path=str(folder)))


def unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_clip_gives_what_the_whole_model_gives(clip):
    encoder = load_encoder(str(clip))
    model = CLIPModel.from_pretrained(clip).eval()
    batch = towers.tokenizer()(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        whole = model(**batch, pixel_values=encoder.preprocess.pixels(PICTURES))
    torch.testing.assert_close(encoder.pictures(PICTURES), whole.image_embeds)
    torch.testing.assert_close(encoder.texts(TEXTS), whole.text_embeds)


@pytest.mark.parametrize("tower", [towers.dinov2, towers.vit])
def test_image_towers_give_the_class_token_and_read_no_text(tower, tmp_path):
    encoder = load_encoder(str(tower(tmp_path)))
    model = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(pixel_values=encoder.preprocess.pixels(PICTURES)).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.pictures(PICTURES), unit(expected))
    assert encoder.texts(TEXTS) is None


def test_embedded_joins_the_bases_text_encoder_and_its_projection(base):
    encoder = load_encoder("embedded", base)
    folder = base.pipeline.name_or_path
    text = CLIPTextModel.from_pretrained(f"{folder}/text_encoder", dtype=torch.float32)
    tokens = towers.tokenizer()(TEXTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    from safetensors.torch import load_file

    weight = load_file(f"{folder}/clip/text_projection.safetensors")["text_projection.weight"].float()
    with torch.no_grad():
        expected = unit(text(tokens).pooler_output @ weight.T)
    torch.testing.assert_close(encoder.texts(TEXTS), expected)
    vectors = encoder.pictures(PICTURES)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_a_picture_does_not_depend_on_its_batch(clip):
    encoder = load_encoder(str(clip))
    many = encoder.pictures(PICTURES * 12)
    torch.testing.assert_close(many[:3], encoder.pictures(PICTURES), atol=1e-6, rtol=1e-5)
    assert many.shape == (36, 12)


def test_preprocessing_is_that_of_the_library():
    from transformers import CLIPImageProcessorPil

    sizes = {"shortest_edge": 32}
    theirs = CLIPImageProcessorPil(size=sizes, crop_size={"height": 32, "width": 32})
    ours, _ = read_processor(json.loads(theirs.to_json_string()), (32, 32))
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    expected = theirs([wide], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.pixels([wide]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("/no/such/folder", "no encoder at '/no/such/folder'"),
        ("word", "no encoder at 'word'"),
    ],
)
def test_nothing_there_is_one_clear_line(ref, says):
    with pytest.raises(BaseModelError, match=says) as caught:
        load_encoder(ref)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="'some-org/some-clip' cannot be loaded") as caught:
        load_encoder("some-org/some-clip")
    assert "\n" not in str(caught.value)
    assert "embedded" in str(caught.value)


def test_the_nearest_folder_is_named(clip):
    with pytest.raises(BaseModelError, match=f"Did you mean '{clip.name}'"):
        load_encoder(str(clip.parent / (clip.name + "x")))


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(BaseModelError, match="'whisper' model: expected one of clip"):
        load_encoder(str(tmp_path))


def test_a_pickle_is_never_opened(tmp_path):
    towers.dinov2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


def test_pictures_framed_otherwise_than_the_tower_asks_are_refused(tmp_path):
    towers.vit(tmp_path)
    towers.preprocessor(tmp_path, do_center_crop=False)
    with pytest.raises(BaseModelError, match="stretched to 32x32 pixels, not to a shorter side of 32"):
        load_encoder(str(tmp_path))


def test_an_unknown_preprocessor_says_which_file(tmp_path):
    towers.dinov2(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 5}}))
    with pytest.raises(BaseModelError, match=r"preprocessor_config\.json"):
        load_encoder(str(tmp_path))

"""Bases of classifiers and detectors: loading, sizes, hashes, and what is said when something is missing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tiny_vision import available, tiny_vision
from visionpeft.errors import BaseModelError, MissingExtraError
from visionpeft.evaluation.encoders import load_encoder
from visionpeft.models.manage import manage
from visionpeft.models.norms import FrozenBatchNorm, live_batch_norms
from visionpeft.models.preprocess import Preprocessing
from visionpeft.models.vision import class_logits, load_vision
from visionpeft.progress import SILENT, RecordingProgress, SilentProgress

PROCESSOR = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}


class Lines(SilentProgress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def saved(folder, name, processor=PROCESSOR):
    if not available(name):
        pytest.skip("not in this transformers")
    tiny_vision(name).save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def pixels(side=32, count=2):
    return torch.randn(count, 3, side, side, generator=torch.manual_seed(0))


def test_a_folder_loads_as_what_it_is(tmp_path):
    lines = Lines()
    base = load_vision(saved(tmp_path, "vit"), task="classify", progress=lines)
    assert lines.lines == []
    assert (base.family.name, base.id, base.labels) == ("vit", str(tmp_path), ("red", "green", "blue"))
    assert base.preprocessing == Preprocessing(size=(32, 32))
    assert not base.model.training
    with torch.no_grad():
        assert torch.equal(class_logits(base, pixels()), tiny_vision("vit")(pixels()).logits)
    manager = manage(base)
    assert (manager.base, manager.base_hash) == (base.id, base.hash)
    half = load_vision(tmp_path, task="classify", dtype=torch.bfloat16)
    assert half.hash == base.hash
    assert class_logits(half, pixels()).dtype == torch.bfloat16


def test_the_embedded_classifier_sees_as_the_embedded_tower():
    base = load_vision("visionpeft/emoji-vit", task="classify")
    images = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)) for seed in (0, 1)]
    encoder = load_encoder()
    with torch.no_grad():
        features = base.model.features(base.preprocessing.pixels(images))
    assert torch.allclose(torch.nn.functional.normalize(features, dim=-1), encoder.pictures(images), atol=1e-6)
    assert base.family.name == "clip"
    assert load_vision("visionpeft/emoji-vit", task="classify").hash == base.hash
    larger = load_vision("visionpeft/emoji-vit", task="classify", image_size=128)
    assert larger.hash != base.hash
    assert class_logits(larger, pixels(128)).shape == (2, 2)


def test_from_scratch_is_the_same_network_with_seeded_weights():
    state = torch.random.get_rng_state()
    first, second = (load_vision("visionpeft/emoji-vit", task="classify", scratch=True, seed=3) for _ in "ab")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.hash == second.hash
    other = load_vision("visionpeft/emoji-vit", task="classify", scratch=True, seed=4)
    trained = load_vision("visionpeft/emoji-vit", task="classify")
    assert len({first.hash, other.hash, trained.hash}) == 3
    assert {k: v.shape for k, v in first.model.state_dict().items()} == {
        k: v.shape for k, v in trained.model.state_dict().items()
    }


def test_a_backbone_without_a_head_gets_a_head_of_zeros_and_says_so(tmp_path):
    model = tiny_vision("vit")
    model.vit.save_pretrained(tmp_path)
    lines = Lines()
    base = load_vision(tmp_path, task="classify", progress=lines)
    assert not class_logits(base, pixels()).any()
    assert any("has no head for this task" in line for line in lines.lines)
    assert any("does not say how it wants its pictures: 32x32" in line for line in lines.lines)
    assert load_vision(tmp_path, task="classify").hash == base.hash


def test_a_base_that_lacks_weights_is_refused(tmp_path):
    saved(tmp_path, "vit")
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in tensors if "layernorm_before" in key)
    save_file(
        {key: one for key, one in tensors.items() if key != gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(BaseModelError, match=r"lacks 1 of the model's weights, '.*layernorm_before"):
        load_vision(tmp_path, task="classify")


def test_our_own_preprocessing_goes_first(tmp_path):
    saved(tmp_path, "rt_detr")
    own = Preprocessing(size=(64, 96), fit="pad", resample="bilinear")
    (tmp_path / "preprocessor.json").write_text(own.model_dump_json())
    base = load_vision(tmp_path, task="detect")
    assert base.preprocessing == own
    assert load_vision(tmp_path, task="detect", image_size=(96, 64)).preprocessing.size == (96, 64)
    with pytest.raises(BaseModelError, match="sides of 65x65 must be multiples of 32"):
        load_vision(tmp_path, task="detect", image_size=65)


@pytest.mark.parametrize(("name", "task"), [("resnet", "classify"), ("rt_detr", "detect")])
def test_batch_norms_of_a_base_are_frozen(name, task, tmp_path):
    base = load_vision(saved(tmp_path, name), task=task, image_size=64)
    assert live_batch_norms(base.model) == []
    assert any(isinstance(module, FrozenBatchNorm) for module in base.model.modules())


def test_batch_norms_of_a_network_from_scratch_are_told_of(tmp_path):
    place = saved(tmp_path, "resnet")
    for scratch, lines in ((True, 1), (False, 0)):
        progress = RecordingProgress(SILENT)
        load_vision(place, task="classify", scratch=scratch, progress=progress)
        assert sum("batch norms, which stay frozen" in line for line in progress.lines) == lines
    quiet = RecordingProgress(SILENT)
    load_vision("visionpeft/emoji-vit", task="classify", scratch=True, progress=quiet)
    assert not any("batch norms" in line for line in quiet.lines)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(BaseModelError, match=r"there is no such base or folder\. Did you mean 'visionpeft/emoji-vit'"):
        load_vision("./visionpeft/emoji-vt", task="classify")
    with pytest.raises(BaseModelError, match=r"no config\.json there"):
        load_vision(tmp_path, task="classify")
    saved(tmp_path, "vit")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"no \.safetensors there.*pickles are not loaded"):
        load_vision(tmp_path, task="classify")


def test_a_base_for_the_other_task_is_refused(tmp_path):
    with pytest.raises(BaseModelError):
        load_vision(saved(tmp_path, "vit"), task="detect")
    with pytest.raises(BaseModelError, match=r"a 'clip', not a base to detect with; there is detr, "):
        load_vision("visionpeft/emoji-vit", task="detect")


def test_a_missing_embedded_detector_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr("visionpeft.models.vision.ASSETS", tmp_path)
    with pytest.raises(BaseModelError, match="embedded base 'visionpeft/emoji-detr' is not in this installation"):
        load_vision("visionpeft/emoji-detr", task="detect")


def test_a_backbone_of_timm_names_the_package(tmp_path, monkeypatch):
    saved(tmp_path, "detr")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["backbone_config"] = {"model_type": "timm_backbone", "backbone": "resnet50"}
    file.write_text(json.dumps(config))
    monkeypatch.setattr("visionpeft.models.vision.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install timm"):
        load_vision(tmp_path, task="detect")

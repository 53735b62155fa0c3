"""Other picture sizes: the same logits as with transformers' own interpolation, and another hash."""

import pytest
import torch

from tests.models.test_vision import pixels, saved
from tests.tiny_vision import tiny_vision
from visionpeft.errors import BaseModelError
from visionpeft.models.vision import class_logits, load_vision

FLAGGED = ["vit", "deit", "siglip", "clip"]


@pytest.mark.parametrize("name", [*FLAGGED, "beit", "dinov2", "dinov2_registers"])
def test_interpolation_is_that_of_transformers(name, tmp_path):
    base = load_vision(saved(tmp_path, name), task="classify", image_size=48)
    flag = {"interpolate_pos_encoding": True} if name in FLAGGED else {}
    with torch.no_grad():
        expected = tiny_vision(name)(pixel_values=pixels(48), **flag).logits
        assert torch.allclose(class_logits(base, pixels(48)), expected, atol=1e-6)
    assert base.preprocessing.size == (48, 48)
    assert base.hash != load_vision(tmp_path, task="classify").hash
    assert base.hash == load_vision(tmp_path, task="classify", image_size=48).hash


@pytest.mark.parametrize("name", ["vit", "deit", "siglip"])
def test_pictures_need_not_be_square(name, tmp_path):
    base = load_vision(saved(tmp_path, name), task="classify", image_size=(32, 64))
    wide = torch.randn(2, 3, 32, 64, generator=torch.manual_seed(0))
    with torch.no_grad():
        expected = tiny_vision(name)(pixel_values=wide, interpolate_pos_encoding=True).logits
        assert torch.allclose(class_logits(base, wide), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["swin", "convnext", "resnet"])
def test_networks_without_positions_take_any_size(name, tmp_path):
    base = load_vision(saved(tmp_path, name), task="classify", image_size=(64, 96))
    wide = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(class_logits(base, wide), tiny_vision(name)(wide).logits, atol=1e-6)


def test_sizes_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(BaseModelError, match="sides of 50x50 must be multiples of 8"):
        load_vision(saved(tmp_path, "dinov2"), task="classify", image_size=50)
    with pytest.raises(BaseModelError, match="square pictures only, not 32x64"):
        load_vision(tmp_path, task="classify", image_size=(32, 64))


def test_a_preprocessing_of_another_size_than_the_network_s_resizes_it(tmp_path):
    processor = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    base = load_vision(saved(tmp_path, "vit", processor), task="classify")
    assert base.model.vit.embeddings.position_embeddings.shape[1] == 1 + 4
    assert class_logits(base, pixels(16)).shape == (2, 3)

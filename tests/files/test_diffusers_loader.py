"""The files in the real diffusers loader: a second implementation of names and scales."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from tests.files.support import PIPELINES, adapter, weights
from visionpeft import files
from visionpeft.adapters import algebra
from visionpeft.models.manage import manage


def loaded_deltas(pipe):
    """ΔW of every module that diffusers adapted, by canonical place."""
    found = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, component, None)
        for name, module in model.named_modules() if model is not None else ():
            if isinstance(module, BaseTunerLayer) and module.active_adapters:
                path = name if component == "unet" or name.startswith("text_model.") else f"text_model.{name}"
                found[f"{component}.{path}"] = module.get_delta_weight(module.active_adapters[0]).float()
    return found


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_diffusers_applies_the_same_change_to_every_module(tmp_path, family, layout, method):
    value = adapter(family, method)
    path = files.export(value, tmp_path / "a.safetensors", layout, base=weights(family), dtype="float32")
    pipe = PIPELINES[family]()
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    expected, found = algebra.deltas(value, weights(family)), loaded_deltas(pipe)
    assert found.keys() == expected.keys()
    for place, delta in expected.items():
        assert torch.allclose(found[place].reshape(delta.shape), delta, atol=2e-6), place


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_ranks_and_alphas_of_single_modules_reach_diffusers(tmp_path, family, layout):
    value = adapter(family, "lora", patterns=True)
    path = files.export(value, tmp_path / "a.safetensors", layout, base=weights(family), dtype="float32")
    pipe = PIPELINES[family]()
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    expected, found = algebra.deltas(value, weights(family)), loaded_deltas(pipe)
    assert found.keys() == expected.keys()
    for place, delta in expected.items():
        assert torch.allclose(found[place].reshape(delta.shape), delta, atol=2e-6), place


def picture(pipe):
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(
        pipe("a photo of a robot", num_inference_steps=2, output_type="np", generator=generator).images
    )


@pytest.mark.parametrize(("family", "method"), [("sd1", "lora"), ("sd1", "dora"), ("sdxl", "rslora")])
def test_diffusers_makes_the_same_picture(tmp_path, family, method):
    value = adapter(family, method, conv=method != "dora")
    path = files.export(value, tmp_path / "a.safetensors", "diffusers", base=weights(family), dtype="float32")
    theirs, ours = PIPELINES[family](), PIPELINES[family]()
    plain = picture(ours)
    theirs.load_lora_weights(str(path.parent), weight_name=path.name)
    manager = manage(ours)
    manager.attach("a", value)
    manager.activate("a")
    mine = picture(ours)
    assert (mine - plain).abs().max() > 1e-3
    assert torch.allclose(picture(theirs), mine, atol=2e-4)

"""Two real files, from what they are to a picture: inspected, converted, proved, blended, and generated with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.tiny import tiny_sd1
from visionpeft import files
from visionpeft.adapters import algebra
from visionpeft.cli import run
from visionpeft.inference.generate import Request, generate
from visionpeft.models.base import Base
from visionpeft.models.family import family_of
from visionpeft.models.manage import manage

REAL = next((p for up in Path(__file__).parents if (p := up / "shared" / "data" / "loras").is_dir()), None)
NAMES = ("analog_svd_rank4", "lora_disney")
WEIGHTS = (3.0, 0.5)  # much, so that a network of random weights shows it


def with_few_values(model: nn.Module) -> nn.Module:
    """A model built on no device, whose parameters are all views of the same random values: little memory."""
    pool = 0.02 * torch.randn(max(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(1))
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        plain = {"bias": torch.zeros, "weight": torch.ones}[last](parameter.shape) if parameter.ndim == 1 else None
        values = pool[: parameter.numel()].view(parameter.shape) if plain is None else plain
        model.get_submodule(owner).register_parameter(last, nn.Parameter(values, requires_grad=False))
    return model.eval()


def base_of_published_shape() -> Base:
    """SD 1.5's UNet and text encoder, all 860 and 85 million weights, beside a small autoencoder and vocabulary."""
    pipeline = tiny_sd1()
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=16, cross_attention_dim=768, attention_head_dim=8)
        small = pipeline.text_encoder.config
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=small.vocab_size, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, bos_token_id=0, eos_token_id=2, pad_token_id=1,
            )
        )  # fmt: skip
    for name, buffer in list(text.named_buffers()):
        owner, _, last = name.rpartition(".")
        text.get_submodule(owner).register_buffer(last, torch.arange(buffer.shape[-1])[None], persistent=False)
    pipeline.register_modules(unet=with_few_values(unet), text_encoder=with_few_values(text))
    return Base(pipeline, family_of(pipeline), "published/shape", "0" * 64)


def pictures(base: Base, manager, *weights) -> list[np.ndarray]:
    requests = [Request("a photo of a robot", steps=2, guidance=1.0, weights=weight) for weight in weights]
    return [np.asarray(picture, dtype=float) for picture in generate(base, requests, manager=manager)]


@pytest.mark.skipif(REAL is None, reason="the shared folder with two real files is not here")
def test_real_files_go_all_the_way(tmp_path, capsys):
    converted, values = [], []
    for name in NAMES:
        source, target = REAL / f"{name}.safetensors", tmp_path / f"{name}.safetensors"
        assert run(["inspect", str(source), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["format"], facts["family"]) == ("cloneofsimo", "sd1")
        arguments = ["--format", "kohya", "--dtype", "float32", "--output", str(target), "--json"]
        assert run(["convert", str(source), *arguments]) == 0
        proof = json.loads(capsys.readouterr().out)["proof"]["programs"]
        for program, found in proof.items():
            assert (found["applied"], found["expected"], found["ignored_keys"]) == (192, 192, []), program
            assert found["max_rel_error"] == 0, program
        values.append(files.read(source))
        converted.append(target)
        assert algebra.deltas(files.read(target)).keys() == algebra.deltas(values[-1]).keys()
    # one as its own program wrote it, one converted: blend takes both
    blended = tmp_path / "both.safetensors"
    parts = [f"{REAL / NAMES[0]}.safetensors={WEIGHTS[0]}", f"{converted[1]}={WEIGHTS[1]}"]
    assert run(["blend", *parts, "--method", "cat", "--output", str(blended)]) == 0
    one, other = (algebra.deltas(value) for value in values)
    for place, found in algebra.deltas(files.read(blended)).items():
        exact = WEIGHTS[0] * one[place].double() + WEIGHTS[1] * other[place].double()
        assert float((found - exact).norm() / exact.norm()) < 1e-5, place
    base = base_of_published_shape()
    manager = manage(base)
    for name, path in zip(("analog", "disney", "both"), (converted[0], converted[1], blended), strict=True):
        assert manager.attach(name, files.read(path)) is not None
    live = dict(zip(("analog", "disney"), WEIGHTS, strict=True))
    bare, together, blend, alone = pictures(base, manager, {}, live, {"both": 1.0}, {"analog": WEIGHTS[0]})
    assert np.isfinite(bare).all()
    assert bare.std() > 1  # a picture, not one colour
    assert np.abs(together - blend).max() <= 1  # the same up to a step of 255
    assert np.abs(together - bare).mean() > 1, np.abs(together - bare).mean()
    assert np.abs(together - alone).mean() > 0.1, np.abs(together - alone).mean()

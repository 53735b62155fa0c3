"""A fused UNet is the UNet, to rounding: outputs, gradients, adapters, names; and what cannot be fused stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts.bench.full_size import build_unet, text_widths
from tests.compute import plain_kernels
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute import fused
from visionpeft.compute.fused_unet import fuse_unet
from visionpeft.models.stable_diffusion import SD1, SDXL

FAMILIES = {"sd1": SD1, "sdxl": SDXL}


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU take the path of a GPU, with formulas in place of kernels."""
    monkeypatch.setattr(fused, "_fuses", lambda x: True)
    monkeypatch.setattr(fused, "_kernels", lambda: plain_kernels)


def frozen(family: str) -> Any:
    torch.manual_seed(0)
    return build_unet(family, tiny=True).requires_grad_(False)


def answered(unet: Any, family: str) -> list[Tensor]:
    """Output, and gradients of the latents and the text's states, in float64."""
    torch.manual_seed(1)
    width, pooled = text_widths(family, tiny=True)
    latents = torch.randn(2, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    states = torch.randn(2, 7, width, dtype=torch.float64, requires_grad=True)
    added = {"text_embeds": torch.randn(2, pooled).double(), "time_ids": torch.randn(2, 6).double()}
    out = unet(latents, torch.tensor([3, 500]), encoder_hidden_states=states,
               added_cond_kwargs=added if family == "sdxl" else None).sample  # fmt: skip
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [latents, states])]


@pytest.mark.usefixtures("fusing")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_unet_to_rounding(family: str):
    plain = frozen(family).double()
    joined = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    names = list(joined.state_dict())
    blocks = ("ResnetBlock2D", "GEGLU", "Transformer2DModel")
    assert fuse_unet(joined) == sum(type(part).__name__ in blocks for part in plain.modules())
    assert list(joined.state_dict()) == names
    for mine, wanted in zip(answered(joined, family), answered(plain, family), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.usefixtures("fusing")
def test_adapters_on_any_layer_get_their_gradients():
    plain = frozen("sd1").double()
    joined = copy.deepcopy(plain)
    found: list[list[Tensor]] = []
    for unet in (plain, joined):
        manager = AdapterManager({"unet": unet}, SD1)
        manager.add("a", LoraSpec(rank=2, targets=("attention", "conv", "time_emb_proj", "mlp")), seed=3)
        for parameter in (mine := list(manager.trainable("a")["unet"])):
            nn.init.normal_(parameter, std=0.05)
        if unet is joined:
            assert fuse_unet(unet) > 0
        torch.manual_seed(5)
        for parameter in mine:
            parameter.data.normal_(std=0.05)
        states = torch.randn(1, 7, text_widths("sd1", tiny=True)[0]).double()
        out = unet(torch.randn(1, 4, 16, 16).double(), torch.tensor([9]), states)
        found.append(list(torch.autograd.grad(out.sample.square().sum(), mine)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)  # masters are float32


def test_norms_that_learn_and_blocks_of_another_make_do_as_before():
    unet = frozen("sd1")
    whole = fuse_unet(copy.deepcopy(unet))
    first = unet.down_blocks[0].resnets[0]
    first.norm1.weight.requires_grad_(True)
    unet.down_blocks[0].resnets[1].output_scale_factor = 2.0
    assert fuse_unet(unet) == whole - 2
    assert "forward" not in vars(first)


def test_on_a_cpu_a_fused_unet_computes_as_written():
    plain = frozen("sd1").double()
    joined = copy.deepcopy(plain)
    fuse_unet(joined)
    for mine, wanted in zip(answered(joined, "sd1"), answered(plain, "sd1"), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from tests.tiny import tiny_vit
from tests.tiny_vision import CLASSIFIERS, available, tiny_vision
from visionpeft import manage
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import LoraSpec, VptSpec
from visionpeft.errors import BaseModelError
from visionpeft.evaluation.classification.explain import attention_rollout, explained_layers, grad_cam
from visionpeft.models.family import Family, Targeting

_VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def seeded(make, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments).eval()


def tiny_resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return seeded(ResNetForImageClassification, config)


def tiny_clip():
    return seeded(CLIPForImageClassification, CLIPConfig(vision_config=_VISION, num_labels=3))


def tiny_siglip():
    return seeded(SiglipForImageClassification, SiglipConfig(vision_config=_VISION, num_labels=3))


def tiny_swin():
    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=3
    )
    return seeded(SwinForImageClassification, config)


MODELS = {"vit": tiny_vit, "clip": tiny_clip, "siglip": tiny_siglip, "swin": tiny_swin, "resnet": tiny_resnet}


def pixels(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """Logits that are linear in feature maps: W · mean(A)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean(dim=(2, 3)) @ self.weight.T


class Tokens(nn.Module):
    """The same of tokens, after two that are of no patch."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = 100 * torch.ones(len(x), 2, x.shape[1])
        tokens = self.features(torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1))
        return tokens[:, 2:].mean(dim=1) @ self.weight.T


@pytest.mark.parametrize("kind", [Linear, Tokens])
def test_grad_cam_is_the_closed_form_of_a_linear_model(kind):
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    maps = pixels(3, 5, 7)
    found = grad_cam(kind(weight), maps, [0, 3, 1], "features", prefix_tokens=2)
    expected = torch.einsum("nk,nkhw->nhw", weight[[0, 3, 1]] / 35, maps).relu()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_gives_a_map_of_the_patches_and_leaves_the_model_as_it_was(name):
    model = MODELS[name]()
    model.train()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    maps = grad_cam(model, pixels(), torch.tensor([0, 2]))
    side = {"swin": 8, "resnet": 4}.get(name, 4)
    assert maps.shape == (2, side, side)
    assert (maps >= 0).all()
    assert maps.flatten(1).max(dim=1).values.min() > 0
    assert model.training
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())
    assert not torch.equal(grad_cam(model, pixels(), 1), grad_cam(model, pixels(), 2))


def test_grad_cam_follows_the_gradient_of_the_blocks_tokens():
    """Against the same written with the block's output as a parameter of the rest of the network."""
    model = tiny_vit()
    x = pixels(1)
    with torch.no_grad():
        tokens = model.vit.layers[0](model.vit.embeddings(x))
    tokens = (tokens[0] if isinstance(tokens, tuple) else tokens).requires_grad_()
    last = model.vit.layers[1](tokens)
    last = last[0] if isinstance(last, tuple) else last
    model.classifier(model.vit.layernorm(last)[:, 0])[0, 2].backward()
    alpha = tokens.grad[:, 1:].mean(dim=1)
    expected = (tokens.detach()[:, 1:] * alpha[:, None]).sum(dim=2).relu().reshape(1, 4, 4)
    torch.testing.assert_close(grad_cam(model, x, 2, "vit.layers.0"), expected)


LAYERS = {
    "vit": ["vit.layers.1", "vit.layers.1.layernorm_before"],
    "clip": ["vision_model.encoder.layers.2", "vision_model.encoder.layers.2.layer_norm1"],
    "siglip": ["vision_model.encoder.layers.2", "vision_model.encoder.layers.2.layer_norm1"],
    "swin": ["swin.encoder.layers.1", "swin.encoder.layers.1.blocks.0.layernorm_before"],
    "resnet": ["resnet.encoder.stages.1"],
}


@pytest.mark.parametrize(("name", "layers"), LAYERS.items())
def test_the_layers_that_are_tried(name, layers):
    assert explained_layers(MODELS[name]())[: len(layers)] == layers


@pytest.mark.parametrize("name", MODELS)
def test_the_last_block_is_explained_unless_only_the_first_token_is_read(name):
    model = MODELS[name]()
    layer = LAYERS[name][1 if name == "vit" else 0]
    torch.testing.assert_close(grad_cam(model, pixels(), 1), grad_cam(model, pixels(), 1, layer))


def test_a_layer_that_says_nothing_is_refused():
    model = tiny_vit()
    with pytest.raises(BaseModelError, match="take an earlier layer"):
        grad_cam(model, pixels(), 0, "vit.layers.1")
    blind = Linear(torch.ones(2, 3)).requires_grad_(False)
    blind.unread = nn.Identity()
    with pytest.raises(BaseModelError, match="was not run"):
        grad_cam(blind, pixels(), 0, "unread")
    with pytest.raises(BaseModelError, match="take an earlier layer"):
        grad_cam(blind, pixels(), 0, "features", forward=lambda x: blind(x).detach())
    with pytest.raises(BaseModelError, match=r"no layer 'vit.layer.0'. Did you mean 'vit.layers.0'"):
        grad_cam(model, pixels(), 0, "vit.layer.0")
    with pytest.raises(BaseModelError, match="not feature maps"):
        grad_cam(model, pixels(), 0, "classifier")
    with pytest.raises(BaseModelError, match="no list of blocks"):
        grad_cam(nn.Linear(2, 2), pixels(), 0)
    with pytest.raises(BaseModelError, match="are no grid"):
        grad_cam(model, pixels(), 0, "vit.layers.0", prefix_tokens=3)
    assert not any(part._forward_hooks for part in model.modules())
    with pytest.raises(BaseModelError, match="17 tokens less 8 before the patches are no grid"):
        attention_rollout(model, pixels(), 8)  # nine are a grid of 3 by 3, and not this picture's


def test_rollout_of_uniform_attention_is_the_closed_form():
    """With A = J/T in L layers: Π ½(J/T + I) = 2⁻ᴸ I + (1 - 2⁻ᴸ) J/T."""
    model = tiny_vit()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "query" in name:
                parameter.zero_()
    expected = torch.full((2, 4, 4), (1 - 0.5**2) / 17)
    torch.testing.assert_close(attention_rollout(model, pixels(), 1), expected)
    patches = torch.full((2, 4, 4), (1 - 0.5**2) / 17 + 0.5**2 / 16)
    torch.testing.assert_close(attention_rollout(model, pixels(), 1, read="patches"), patches)


def test_rollout_multiplies_later_layers_from_the_left():
    model = tiny_vit()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # attention far from uniform: the order of the layers matters
        first, second = (
            layer[0].mean(0).double().numpy() for layer in model(pixels(1), output_attentions=True).attentions
        )
    one = np.eye(17)
    flow = (0.5 * (second + one)) @ (0.5 * (first + one))
    np.testing.assert_allclose(attention_rollout(model, pixels(1), 1)[0].numpy(), flow[0, 1:].reshape(4, 4), atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip"])
def test_rollout_puts_the_attention_back(name):
    model = MODELS[name]()
    parts = [part for part in model.modules() if hasattr(part, "set_attn_implementation")]
    before = [part.config._attn_implementation for part in parts]
    assert "sdpa" in before
    plain = model(pixels()).logits
    shares = attention_rollout(model, pixels(), 0 if name == "siglip" else 1)
    assert shares.shape == (2, 4, 4)
    assert (shares > 0).all()
    assert (shares.sum(dim=(1, 2)) <= 1 + 1e-5).all()
    assert [part.config._attn_implementation for part in parts] == before
    assert torch.equal(model(pixels()).logits, plain)


@pytest.mark.parametrize("name", ["swin", "resnet"])
def test_rollout_is_refused_where_there_is_no_global_attention(name):
    with pytest.raises(BaseModelError, match="take Grad-CAM"):
        attention_rollout(MODELS[name](), pixels())
    with pytest.raises(BaseModelError, match="needs a transformers model"):
        attention_rollout(Linear(torch.ones(2, 3)), pixels())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_family_is_rolled_out_from_the_tokens_that_it_answers_from(name):
    if not available(name):
        pytest.skip("not in this transformers")
    model = tiny_vision(name)
    hooks = sum(len(part._forward_hooks) for part in model.modules())

    def forward(x):
        return model(pixel_values=x).logits

    if name in ("swin", "convnext", "resnet"):
        with pytest.raises(BaseModelError, match="take Grad-CAM"):
            attention_rollout(model, pixels(), forward=forward)
        return
    found = attention_rollout(model, pixels(), forward=forward)
    read = {"vit": "first", "deit": "first", "clip_tower": "first", "siglip": "patches", "clip": "patches",
            "beit": "patches"}.get(name, "both")  # fmt: skip
    expected = attention_rollout(model, pixels(), read=read, forward=forward)
    torch.testing.assert_close(found, expected)
    others = {"first", "patches", "both"} - {read} if name != "siglip" else {"first"}
    for other in others:
        assert not torch.allclose(found, attention_rollout(model, pixels(), read=other, forward=forward))
    assert sum(len(part._forward_hooks) for part in model.modules()) == hooks


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_are_tokens_before_the_patches(deep):
    model = tiny_vit()
    base = attention_rollout(model, pixels())
    manager = manage(model)
    manager.add("a", VptSpec(tokens=3, deep=deep))
    manager.activate("a")
    found = attention_rollout(model, pixels())
    assert found.shape == base.shape
    assert not torch.allclose(found, base)
    torch.testing.assert_close(found, attention_rollout(model, pixels(), 4))


def adapted(model, targets):
    """The manager of a model with a LoRA that does something."""
    family = Family("resnet", {"model": Targeting({"conv": r"\.convolution$"}, head=r"^classifier")}, lambda _: None)
    manager = AdapterManager({"model": model}, family) if targets == "conv" else manage(model)
    manager.add("a", LoraSpec(rank=4, alpha=16, targets=targets))
    with torch.no_grad():
        for parameters in manager.trainable("a").values():
            for parameter in parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    manager.activate("a")
    return manager


@pytest.mark.parametrize(("name", "targets"), [("vit", "attention"), ("resnet", "conv")])
def test_the_adapted_model_is_explained_and_not_the_base(name, targets):
    base = grad_cam(MODELS[name](), pixels(), 1)
    model = MODELS[name]()
    manager = adapted(model, targets)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not torch.allclose(grad_cam(model, pixels(), 1), base)
    with manager.using({}):
        torch.testing.assert_close(grad_cam(model, pixels(), 1), base)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for ps in manager.trainable("a").values() for p in ps)


def test_rollout_follows_the_adapter():
    base = attention_rollout(tiny_vit(), pixels())
    model = tiny_vit()
    manager = adapted(model, "attention")
    assert not torch.allclose(attention_rollout(model, pixels()), base, atol=1e-4)
    with manager.using({}):
        torch.testing.assert_close(attention_rollout(model, pixels()), base)

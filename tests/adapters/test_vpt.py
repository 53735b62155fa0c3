"""Visual prompts against the paper's own loop, written out over the plain layers."""

import pytest
import torch
from transformers import DeiTConfig, DeiTModel

from tests.adapters.cases import MODELS, same, stir
from tests.tiny import tiny_sd1
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import LoraSpec, VptSpec
from visionpeft.errors import AdapterError
from visionpeft.models.family import Family, Targeting
from visionpeft.models.manage import manage

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(1))
LAYER = "model.vit.layers.{}.prompts"


@pytest.fixture
def vit():
    return MODELS["vit"]()


def prompted(model, value, deep, prefix=1):
    """VPT by Jia et al.: prompts after the class token, kept (shallow) or replaced in front of every layer (deep)."""
    tokens = model.vit.embeddings(PIXELS)
    count = 0
    for number, layer in enumerate(model.vit.layers):
        if deep or number == 0:
            new = value.tensors[LAYER.format(number)].expand(len(PIXELS), -1, -1)
            tokens = torch.cat([tokens[:, :prefix], new, tokens[:, prefix + count :]], dim=1)
            count = new.shape[1]
        tokens = layer(tokens)
    assert tokens.shape[1] == 1 + count + 16
    return model.classifier(model.vit.layernorm(tokens)[:, 0])


@pytest.mark.parametrize("deep", [False, True])
def test_it_is_the_papers(vit, deep):
    report = vit.manager.add("a", VptSpec(tokens=3, deep=deep))
    stir(vit.manager, "a")
    assert report.parameters == 3 * 32 * (2 if deep else 1)
    assert report.modules == {"model": 2 if deep else 1}
    value = vit.manager.capture("a")
    assert {tuple(t.shape) for t in value.tensors.values()} == {(3, 32)}
    out = vit.run()
    assert vit.manager.components["model"].vit(PIXELS).last_hidden_state.shape == (2, 17, 32)
    with vit.manager.using({}):
        plain = vit.manager.components["model"]
        assert torch.allclose(out, prompted(plain, value, deep), atol=1e-5)
        assert not torch.allclose(out, vit.run(), atol=1e-3)
    out.square().sum().backward()
    assert all(p.grad.any() for p in vit.manager.trainable("a")["model"])


@pytest.mark.parametrize("deep", [False, True])
def test_it_travels_and_goes(vit, tmp_path, deep):
    state, types = vit.state(), vit.types()
    vit.manager.add("a", VptSpec(tokens=3, deep=deep))
    value = vit.manager.capture("a")
    out = vit.run()
    vit.manager.remove("a")
    vit.assert_plain(state, types)
    vit.manager.attach("b", value.save(tmp_path / "a.safetensors"))
    assert same(vit.manager.capture("b"), value)
    assert torch.allclose(vit.run(), out, atol=1e-6)
    vit.manager.swap("b", value)
    vit.manager.remove("b")
    odd = {**value.tensors, LAYER.format(0): torch.zeros(4, 32)}
    with pytest.raises(AdapterError, match=r"'prompts' is \(4, 32\) instead of \(3, 32\)"):
        vit.manager.attach("c", Adapter(value.specs, odd, {}, value.metadata))
    with pytest.raises(AdapterError, match=r"misses the tensors of 'model.vit.layers.0'"):
        vit.manager.attach(
            "c", Adapter(value.specs, {k: t for k, t in odd.items() if "0" not in k}, {}, value.metadata)
        )
    vit.assert_plain(state, types)


def test_several_stand_side_by_side_whatever_their_depth(vit):
    vit.manager.add("a", VptSpec(tokens=2))
    vit.manager.add("a+", VptSpec(tokens=3, deep=True))
    vit.manager.add("lora", LoraSpec())
    for name in ("a", "a+", "lora"):
        stir(vit.manager, name, len(name))
    seen = []
    for layer in vit.manager._tree.modules("model")["vit.layers.0"], vit.manager._tree.modules("model")["vit.layers.1"]:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    both = vit.run()
    assert seen == [17 + 5, 17 + 5]
    vit.manager.activate({"lora": 1.0, "a": 1})
    seen.clear()
    alone = vit.run()
    assert seen == [17 + 2, 17 + 2]
    vit.manager.activate({"a": 1, "a+": {"model.vit.layers.0": 0, "*": 1}})
    seen.clear()
    vit.run()
    assert seen == [17 + 2, 17 + 5]
    assert not torch.allclose(both, alone, atol=1e-3)


def test_other_weights_are_refused_and_change_nothing(vit):
    vit.manager.add("a", VptSpec())
    out = vit.run()
    with pytest.raises(
        AdapterError, match=r"Adapter 'a': its prompts are there or not, so its weight is 1 or 0, not 0.5"
    ):
        vit.manager.activate({"a": 0.5})
    assert torch.equal(vit.run(), out)


def test_dropout_acts_in_training_only_and_first_values_depend_on_the_seed(vit):
    vit.manager.add("a", VptSpec(dropout=0.5), seed=3)
    assert torch.equal(vit.run(), vit.run())
    vit.manager.components["model"].train()
    assert not torch.equal(vit.run(), vit.run())
    first = vit.manager.capture("a")
    vit.manager.remove("a")
    vit.manager.add("a", VptSpec(dropout=0.5), seed=3)
    assert same(vit.manager.capture("a"), first)
    assert first.tensors[LAYER.format(0)].abs().max() <= (3 / 32) ** 0.5


def test_a_half_base_keeps_float32_masters(vit):
    vit.manager.add("a", VptSpec())
    full, value = vit.run(), vit.manager.capture("a")
    model = vit.manager.components["model"].to(torch.bfloat16)
    assert same(vit.manager.capture("a"), value)
    assert torch.allclose(model(PIXELS.bfloat16()).logits.float(), full, atol=0.1)


def test_a_mask_leaves_no_room(vit):
    vit.manager.add("a", VptSpec())
    with pytest.raises(AdapterError, match=r"'model.vit.layers.0' is given an attention mask or bias"):
        vit.manager.components["model"].vit.layers[0](torch.randn(1, 17, 32), torch.ones(1, 1, 17, 17))


def test_two_prefix_tokens_stay_in_front():
    torch.manual_seed(0)
    config = DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    model = DeiTModel(config).eval()
    rules = Targeting(semantic={}, token_layers=r"layers?\.\d+$", prefix_tokens=lambda _: 2)
    manager = AdapterManager({"model": model}, Family("deit", {"model": rules}, lambda model: {"model": model}))
    manager.add("a", VptSpec(tokens=4, deep=True))
    seen = []
    next(layer for path, layer in manager._tree.modules("model").items() if path.endswith("0") and "layer" in path) \
        .register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # fmt: skip
    out = model(PIXELS).last_hidden_state
    assert out.shape == (2, 18, 32)
    value = next(iter(manager.capture("a").tensors.values()))
    assert torch.equal(seen[0][0, 2:6], value)


def test_families_without_such_layers_say_so():
    with pytest.raises(AdapterError, match="'unet' of the family 'sd1' has none that take more tokens"):
        manage(tiny_sd1()).add("a", VptSpec())

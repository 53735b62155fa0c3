"""Full tuning as an adapter: every parameter, in closed form, and the base untouched."""

import pytest
import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.adapters.cases import MODELS, begin, same, stir, trained
from tests.adapters.test_heads import ANY, deformable
from tests.adapters.test_manager import Eight
from tests.tiny import tiny_sd1, tiny_vit
from visionpeft import files
from visionpeft.adapters.algebra import deltas
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import DoraSpec, FullSpec, LoraSpec
from visionpeft.errors import AdapterError, TargetError, VisionPeftError
from visionpeft.models.family import Family, Targeting
from visionpeft.models.manage import manage

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(1))


@pytest.fixture
def vit():
    model = MODELS["vit"]()
    model.targets = {"model": "attention"}
    return model


def shifted(adapter, weight=1.0):
    """A tiny ViT with the differences written into its parameters by hand."""
    model = tiny_vit()
    parameters = dict(model.named_parameters())
    for key, difference in adapter.tensors.items():
        parameters[key.removeprefix("model.").removesuffix(".diff")].data += weight * difference
    return model


def test_every_parameter_trains_and_acts_at_its_weight(vit):
    value = trained("full", vit)
    model = vit.manager.components["model"]
    names = {key.removeprefix("model.").removesuffix(".diff") for key in value.tensors}
    assert names == {name for name, _ in tiny_vit().named_parameters()}
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "vit.layernorm.weight"} <= names
    for weight in (1.0, 0.3, -0.5):
        vit.manager.activate({"a": weight})
        with torch.no_grad():
            assert torch.allclose(model(PIXELS).logits, shifted(value, weight)(PIXELS).logits, atol=1e-5)


def test_gradients_are_those_of_the_parameters(vit):
    begin("full", vit)
    stir(vit.manager, "a")
    vit.run().square().sum().backward()
    plain = shifted(vit.manager.capture("a")).requires_grad_(True)
    plain(PIXELS).logits.square().sum().backward()
    for name, parameter in plain.named_parameters():
        mine = vit.manager.parameters("a")[f"model.{name}.diff"].grad
        assert torch.allclose(mine, parameter.grad, atol=1e-5), name


def test_merged_weights_are_w_plus_w_times_d_and_come_back(vit):
    value, state = trained("full", vit), tiny_vit().state_dict()
    vit.manager.merge({"a": 0.25})
    for key, tensor in vit.manager.components["model"].state_dict().items():
        assert torch.equal(tensor, state[key] + 0.25 * value.tensors[f"model.{key}.diff"]), key
    vit.manager.unmerge()
    vit.manager.remove("a")
    assert all(torch.equal(t, state[key]) for key, t in vit.manager.components["model"].state_dict().items())


def test_targets_choose_modules():
    manager = manage(tiny_vit())
    manager.add("late", FullSpec(targets=("re:^vit.layers.1", "vit.embeddings")))
    names = set(manager.capture("late").tensors)
    assert "model.vit.layers.1.layernorm_before.weight.diff" in names
    assert "model.vit.embeddings.cls_token.diff" in names
    assert not any(".layers.0." in name or "classifier" in name for name in names)
    manager.add("attention", FullSpec(targets="attention.q"))
    assert len(manager.capture("attention").tensors) == 4
    with pytest.raises(TargetError, match="'norms' matches no layer"):
        manager.add("b", FullSpec(targets="norms"))


def test_attach_is_strict(vit):
    value = trained("full", vit)
    vit.manager.remove("a")
    state, types = vit.state(), vit.types()
    norm = "model.vit.layernorm.bias.diff"
    for tensors, message in (
        ({k: t for k, t in value.tensors.items() if k != norm}, "misses tensor 'bias.diff' at 'model.vit.layernorm'"),
        ({**value.tensors, "model.vit.layernorm.x.diff": torch.ones(1)}, "has the unexpected tensor 'x.diff'"),
        ({**value.tensors, norm: torch.ones(3)}, r"'bias.diff' is \(3,\) instead of \(32,\)"),
        ({**value.tensors, "model.vit.nothing.bias.diff": torch.ones(3)}, "no such layer"),
        ({k: t for k, t in value.tensors.items() if "layernorm." not in k}, "misses the tensors of"),
    ):
        with pytest.raises(AdapterError, match=message):
            vit.manager.attach("b", Adapter(value.specs, tensors, {}, value.metadata))
    vit.assert_plain(state, types)


def test_two_add_up_live_and_blended(vit):
    parts = {"a": (trained("full", vit, "a", 1), 0.7), "a+": (trained("full", vit, "a+", 2), -0.4)}
    vit.manager.activate({"a": 0.7, "a+": -0.4})
    live = vit.run()
    vit.manager.remove("a", "a+")
    both = blend(parts)
    for key, tensor in both.tensors.items():
        assert torch.allclose(tensor, 0.7 * parts["a"][0].tensors[key] - 0.4 * parts["a+"][0].tensors[key], atol=1e-7)
    vit.manager.attach("both", both)
    assert torch.allclose(vit.run(), live, atol=1e-5)
    total = blend(parts, method="linear")
    assert all(torch.equal(total.tensors[key], tensor) for key, tensor in both.tensors.items())


def test_what_cannot_blend_says_so(vit):
    full, lora, prompts = (trained(method, vit, method, 1) for method in ("full", "lora", "vpt"))
    with pytest.raises(AdapterError, match=r"'f' tunes 'model' fully and 'l' with the method 'lora': blend full with"):
        blend({"f": (full, 1.0), "l": (lora, 1.0)})
    with pytest.raises(AdapterError, match="'svd' is of low-rank factors"):
        blend({"f": (full, 1.0), "g": (full, 1.0)}, method="svd")
    with pytest.raises(AdapterError, match="no rank to cut to"):
        blend({"f": (full, 1.0), "g": (full, 1.0)}, rank=2)
    with pytest.raises(AdapterError, match=r"'p' of method 'vpt' cannot be blended as it is: .*changes no weights"):
        blend({"p": (prompts, 1.0), "l": (lora, 1.0)})


def test_it_becomes_lora_or_says_what_is_lost(vit):
    value = trained("full", vit)
    with pytest.raises(AdapterError, match=r"full tuning changed .*'model.vit.embeddings.cls_token'.* give drop=True"):
        value.to_lora(rank=4)
    with pytest.raises(AdapterError, match="give rank=… or energy=…"):
        value.to_lora(drop=True)
    lora = value.to_lora(energy=1.0, drop=True)
    exact = deltas(value)
    assert set(deltas(lora)) == {f"model.{path}" for path in vit.manager._tree.layers("model")}
    assert all(torch.allclose(change, exact[place], atol=1e-5) for place, change in deltas(lora).items())
    vit.manager.remove("a")
    vit.manager.attach("lora", lora)
    vit.manager.add("weights", FullSpec(targets=tuple(vit.manager._tree.layers("model"))))
    for key, parameter in vit.manager.parameters("weights").items():
        parameter.data = value.tensors[key] * float(key.endswith("weight.diff"))
    alone = vit.manager.capture("weights")
    assert same(alone.to_lora(rank=32), alone.to_lora(rank=32, drop=True))  # nothing else changed: nothing is lost
    vit.manager.activate("weights")
    live = vit.run()
    vit.manager.activate("lora")
    assert torch.allclose(vit.run(), live, atol=1e-4)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_export_to_other_programs_is_refused(vit, tmp_path, format):
    manager = manage(tiny_sd1())
    manager.add("a", FullSpec(targets="mlp"))
    with pytest.raises(AdapterError, match=r"cannot express the method 'full' .*to_lora"):
        files.export(manager.capture("a"), tmp_path / "a.safetensors", format)
    for method in ("vpt", "probe"):
        with pytest.raises(VisionPeftError):
            files.export(trained(method, vit, method), tmp_path / "a.safetensors", format)
    assert list(tmp_path.iterdir()) == []
    native = files.export(trained("full", vit, "full"), tmp_path / "a.safetensors", "native")
    assert same(files.read(native), vit.manager.capture("full"))
    assert files.inspect(native)["components"]["model"]["method"] == "full"


def test_it_acts_beside_lora_and_dora_as_if_alone(vit):
    for name, spec in (("lora", LoraSpec(rank=2)), ("dora", DoraSpec(rank=2)), ("full", FullSpec())):
        vit.manager.add(name, spec)
        stir(vit.manager, name, len(name))
    layer = vit.manager._tree.adapted["model.vit.layers.0.attention.q_proj"]
    x, said = torch.randn(3, 32), {}
    for name in ("lora", "dora", "full"):
        vit.manager.activate(name)
        said[name] = layer(x) - layer.base(x)
    vit.manager.activate(["lora", "dora", "full"])
    assert torch.allclose(layer(x) - layer.base(x), sum(said.values()), atol=1e-5)


def test_a_quantized_base_is_refused_and_named():
    model = tiny_vit()
    model.vit.layers[0].attention.q_proj = Eight(model.vit.layers[0].attention.q_proj)
    with pytest.raises(AdapterError, match=r"'model.vit.layers.0.attention.q_proj' is quantized: full tuning needs"):
        manage(model).add("a", FullSpec())


class WithNorm(nn.Module):
    """A batch norm, a parameter of its own in a branch, and a table that is read without being called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.inner = nn.Module()
        self.inner.queries = nn.Embedding(2, 4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) @ self.inner.queries.weight.T


@pytest.mark.parametrize("spec", [FullSpec(), LoraSpec(targets="conv")])
def test_batch_norms_keep_their_statistics(spec):
    model = WithNorm().train()
    manager = AdapterManager({"model": model}, ANY)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    manager.add("a", spec)
    stir(manager, "a")
    model.train()
    x = torch.randn(4, 3, 8, 8)
    out = model(x)
    model.eval()
    assert torch.equal(model(x), out)  # the base's statistics, not the batch's
    model.train()
    manager.merge()
    manager.unmerge()
    model(x)
    manager.remove("a")
    assert model.norm.training
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_weight_that_is_read_past_its_module_is_the_shifted_one():
    model = WithNorm().eval()
    manager = AdapterManager({"model": model}, ANY)
    manager.add("a", FullSpec(targets="queries"))
    x = torch.randn(4, 3, 8, 8)
    before = model(x)
    manager.parameters("a")["model.inner.queries.weight.diff"].data += 1.0
    features = model.norm(model.conv(x)).mean((2, 3))
    assert torch.allclose(model(x) - before, features.sum(1, keepdim=True).expand(-1, 2), atol=1e-5)
    model(x).sum().backward()
    assert manager.parameters("a")["model.inner.queries.weight.diff"].grad.any()


def test_a_parameter_of_the_model_itself_or_a_fixed_one_is_not_trained():
    model = nn.Module()
    model.scale, model.out = nn.Parameter(torch.ones(1)), nn.Linear(2, 2)
    with pytest.raises(AdapterError, match="scale: of 'model' itself, which no slot can hold"):
        AdapterManager({"model": model}, ANY).add("a", FullSpec())
    family = Family("any", {"model": Targeting(semantic={}, fixed=r"^scale$")}, lambda model: {"model": model})
    manager = AdapterManager({"model": model}, family)
    manager.add("a", FullSpec())
    assert sorted(manager.parameters("a")) == ["model.out.bias.diff", "model.out.weight.diff"]


def test_tied_parameters_have_one_difference():
    model = deformable()
    manager = AdapterManager({"model": model}, ANY)
    manager.add("a", FullSpec(targets="re:class_embed.0"))
    assert len(manager.parameters("a")) == 2
    stir(manager, "a")
    x = torch.randn(3, 32)
    assert torch.equal(model.class_embed[0](x), model.class_embed[1](x))
    assert not torch.equal(model.class_embed[0](x), model.class_embed[0].base(x))
    live = model.class_embed[1](x)
    manager.merge()
    assert model.class_embed[0].weight is model.class_embed[1].weight
    assert torch.allclose(model.class_embed[1](x), live, atol=1e-5)
    manager.unmerge()
    value = manager.capture("a")
    manager.remove("a")
    manager.attach("b", value)
    assert same(manager.capture("b"), value)
    assert torch.allclose(model.class_embed[1](x), live, atol=1e-6)


def test_different_changes_of_one_tied_weight_do_not_merge():
    model = deformable()
    manager = AdapterManager({"model": model}, ANY)
    manager.add("a", LoraSpec(targets=r"re:^class_embed\.\d$"))
    stir(manager, "a")
    with pytest.raises(AdapterError, match="have one and the same weight, and different changes of it"):
        manager.merge()


def siglip():
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    return SiglipVisionModel(config).eval()


def test_layers_inside_multihead_attention():
    model = siglip()
    manager = AdapterManager({"model": model}, ANY)
    place = next(p for p in manager._tree.layers("model") if p.endswith("head.attention.out_proj"))
    with pytest.raises(AdapterError, match=rf"'model.{place}' is inside a torch.nn.MultiheadAttention"):
        manager.add("a", LoraSpec(targets=(place,)))
    plain = model(PIXELS).pooler_output
    manager.add("a", FullSpec(targets="re:head.attention"))
    assert torch.allclose(model(PIXELS).pooler_output, plain, atol=1e-6)
    stir(manager, "a")
    names = [key for key in manager.parameters("a") if "out_proj" in key or "in_proj" in key]
    assert len(names) == 4
    live = model(PIXELS).pooler_output
    live.sum().backward()
    assert all(manager.parameters("a")[name].grad is not None for name in names)
    with torch.no_grad():
        assert torch.allclose(model(PIXELS).pooler_output, live, atol=1e-5)  # the fast path too
        manager.merge()
        assert torch.allclose(model(PIXELS).pooler_output, live, atol=1e-5)
    assert not torch.allclose(live, plain, atol=1e-3)


def test_dora_on_rows_of_zeros_is_refused():
    model = deformable()
    manager = AdapterManager({"model": model}, ANY)
    place = next(p for p in manager._tree.layers("model") if p.endswith("sampling_offsets"))
    assert not manager._tree.base(f"model.{place}").weight.any()  # as deformable attention begins
    with pytest.raises(AdapterError, match=rf"'{place}': DoRA divides by the length of each row .* all zero there"):
        manager.add("a", DoraSpec(targets=(place,)))
    manager.add("a", LoraSpec(targets=(place,)))
    stir(manager, "a")
    assert model(torch.randn(1, 3, 64, 64)).logits.isfinite().all()

"""What must hold for every method on every family."""

import pytest
import torch

from tests.adapters.cases import (
    HOME,
    LAYERED,
    MODELS,
    SCALED,
    begin,
    every_case,
    every_method,
    every_model,
    same,
    spec_for,
    stir,
    trained,
)
from visionpeft.adapters.algebra import deltas
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.methods import METHODS
from visionpeft.errors import AdapterError


@every_case
def test_add_changes_nothing_and_remove_gives_the_model_back(method, kind):
    model = MODELS[kind]()
    state, types, before = model.state(), model.types(), model.run()
    report = begin(method, model)
    assert torch.equal(model.run(), before) == METHODS[method].starts_as_base
    assert set(report.modules) == set(model.targets)
    assert report.parameters == sum(p.numel() for ps in model.manager.trainable("a").values() for p in ps)
    stir(model.manager, "a")
    assert not torch.allclose(model.run(), before, atol=1e-3)
    model.manager.remove("a")
    model.assert_plain(state, types)
    assert torch.equal(model.run(), before)


@every_case
def test_capture_and_attach_are_inverse(method, kind, tmp_path):
    model = MODELS[kind]()
    first = trained(method, model)
    for parameter in model.manager.parameters("a").values():
        parameter.requires_grad_(False)  # as attached ones are: matmul takes another kernel for those that train
    out = model.run()
    model.manager.remove("a")
    model.manager.attach("again", first.save(tmp_path / "a.safetensors"))
    assert torch.equal(model.run(), out)
    assert same(model.manager.capture("again"), first)
    assert model.manager.trainable() == {}


@every_case
def test_merge_says_the_same_and_unmerge_is_bit_exact(method, kind):
    model = MODELS[kind]()
    state, types, before = model.state(), model.types(), model.run()
    trained(method, model)
    if method in ("vpt", "prompt"):
        with pytest.raises(AdapterError, match=r"Adapter 'a' puts prompts in front of .* which no weight can hold"):
            model.manager.merge()
        return
    model.manager.activate({"a": 0.5})
    live = model.run()
    model.manager.merge()
    assert list(model.state()) == list(state)
    assert model.types() == types
    assert torch.allclose(model.run(), live, atol=2e-5)
    assert not torch.allclose(live, before, atol=1e-3)
    model.manager.unmerge()
    assert torch.equal(model.run(), live)
    model.manager.remove("a")
    model.assert_plain(state, types)


@every_case
def test_activation_acts_and_never_changes_what_trains(method, kind):
    model = MODELS[kind]()
    before = model.run()
    trained(method, model)
    full = model.run()
    flags = [p.requires_grad for ps in model.manager.trainable("a").values() for p in ps]
    for weights in ({}, "a", ["a"], {"a": 0.0}, {"a": 0.3 if method in SCALED else 1}):
        model.manager.activate(weights)
        assert [p.requires_grad for ps in model.manager.trainable("a").values() for p in ps] == flags
    assert all(flags)
    assert flags
    with model.manager.using({}):
        assert torch.equal(model.run(), before)
    with model.manager.using("a"):
        assert torch.equal(model.run(), full)
    if method not in SCALED:
        return
    with model.manager.using({"a": 0.3}):
        part = model.run()
    assert not torch.allclose(part, full, atol=1e-4)
    assert not torch.allclose(part, before, atol=1e-4)


@every_case
def test_only_the_adapter_gets_gradients(method, kind):
    model = MODELS[kind]()
    begin(method, model)
    stir(model.manager, "a")
    model.run().square().mean().backward()
    parameters = [p for ps in model.manager.trainable("a").values() for p in ps]
    assert all(p.dtype == torch.float32 for p in parameters)
    # SDXL does not read the last layer of its first text encoder
    assert sum(p.grad is not None and bool(p.grad.any()) for p in parameters) > 0.7 * len(parameters)
    mine = {id(p) for p in parameters}
    others = [p for m in model.manager.components.values() for p in m.parameters() if id(p) not in mine]
    assert not any(p.requires_grad for p in others)


@every_method
def test_blend_of_one_at_weight_1_is_it(method):
    model = MODELS[HOME.get(method, "vit")]()
    one = trained(method, model)
    assert same(blend({"a": (one, 1.0)}), one)


@pytest.mark.parametrize("second", LAYERED)
@pytest.mark.parametrize("method", SCALED)
def test_adapters_of_any_two_methods_add_up_on_the_same_layers(method, second):
    model = MODELS["vit"]()
    model.targets = {"model": "attention"}
    first_value, second_value = trained(method, model, "a", 1), trained(second, model, "b", 2)
    model.manager.activate({"a": 0.7, "b": -0.4})
    base = model.manager.base_weights(model.manager._held["b"].places)
    first, other = deltas(first_value, base), deltas(second_value, base)
    place = "model.vit.layers.1.attention.q_proj"
    layer = model.manager._tree.adapted[place]
    x = torch.randn(5, 32, generator=torch.manual_seed(0))
    bias = base[f"{place}.bias"]
    scaled = sum(
        weight * (value.tensors[f"{place}.ia3_l"].flatten() - 1) * bias
        for weight, value in ((0.7, first_value), (-0.4, second_value))
        if f"{place}.ia3_l" in value.tensors
    ) + 0.7 * first_value.tensors.get(f"{place}.bias.diff", torch.zeros(32))
    expected = x @ (base[place] + 0.7 * first[place] - 0.4 * other[place]).T + bias + scaled
    assert torch.allclose(layer(x), expected, atol=1e-5)


@every_model
def test_cat_blend_equals_the_live_sum(kind):
    model = MODELS[kind]()
    parts = {
        "a": (trained("lora", model, "a", 1), 0.8),
        "b": (trained("rslora", model, "b", 2, rank=5), -0.6),
        "c": (trained("lokr", model, "c", 3), 0.5),
    }
    model.manager.activate({name: weight for name, (_, weight) in parts.items()})
    live = model.run()
    model.manager.remove("a", "b", "c")
    model.manager.attach("sum", blend(parts))
    assert torch.allclose(model.run(), live, atol=1e-5)
    summed = deltas(blend(parts))
    for name in ("a", "b", "c"):
        for place, change in deltas(parts[name][0]).items():
            summed[place] = summed[place] - parts[name][1] * change
    assert max(rest.abs().max() for rest in summed.values()) < 1e-6


@pytest.mark.parametrize("init", ["gaussian", "pissa", "olora"])
@pytest.mark.parametrize("method", ["lora", "rslora"])
@every_model
def test_inits_leave_the_base_alone_and_are_saved_as_plain_lora(kind, method, init):
    model = MODELS[kind]()
    state, types, before = model.state(), model.types(), model.run()
    model.manager.add("a", spec_for(method, model, init=init, rank_pattern={}))
    assert torch.allclose(model.run(), before, atol=1e-5)
    stir(model.manager, "a")
    out = model.run()
    plain = model.manager.capture("a")
    for spec in plain.specs.values():
        assert spec.init in ("default", "gaussian")
        assert spec.rank == (3 if init == "gaussian" else 6)
    model.manager.remove("a")
    model.assert_plain(state, types)
    model.manager.attach("plain", Adapter(plain.specs, plain.tensors, {}, plain.metadata))
    assert torch.allclose(model.run(), out, atol=1e-5)


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_swap_restores_training_bit_for_bit_and_in_place(init):
    model, fresh = MODELS["sd1"](), MODELS["sd1"]()
    spec = spec_for("rslora", model, init=init)
    for one in (model, fresh):
        one.manager.add("a", spec, tokens={"<robot>": "toy"})
    stir(model.manager, "a", 5)
    where = [p.data_ptr() for ps in fresh.manager.trainable("a").values() for p in ps]
    fresh.manager.swap("a", model.manager.capture("a"))
    assert torch.equal(fresh.run(), model.run())
    assert same(fresh.manager.capture("a"), model.manager.capture("a"))
    assert [p.data_ptr() for ps in fresh.manager.trainable("a").values() for p in ps] == where
    for mine, theirs in zip(fresh.manager.trainable("a").values(), model.manager.trainable("a").values(), strict=True):
        assert all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))

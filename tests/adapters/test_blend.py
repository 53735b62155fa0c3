"""Blends and conversions: functions of values, without a model."""

import dataclasses

import pytest
import torch

from tests.adapters.cases import MODELS, every_layered_method, every_model, spec_for, stir, trained
from visionpeft.adapters.algebra import deltas
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.blend import BLENDS, blend
from visionpeft.adapters.methods import METHODS
from visionpeft.adapters.spec import DoraSpec, LoraSpec
from visionpeft.errors import AdapterError


def made(rank=2, seed=0, places=("x", "y"), out=6, inn=5, component="unet", **spec):
    generator = torch.manual_seed(seed)
    tensors = {}
    for path in places:
        tensors[f"{component}.{path}.lora_A.weight"] = torch.randn(rank, inn, generator=generator)
        tensors[f"{component}.{path}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return Adapter({component: LoraSpec(targets=tuple(places), rank=rank, **spec)}, tensors)


def expected(parts, place):
    return sum(weight * deltas(adapter)[place] for adapter, weight in parts if place in deltas(adapter))


PARTS = [(made(2, 1, alpha=5), 0.7), (made(3, 2, places=("y", "z")), -1.2)]


def test_cat_is_the_exact_sum_over_the_union_of_modules():
    whole = blend({"a": PARTS[0], "b": PARTS[1]})
    assert sorted(deltas(whole)) == ["unet.x", "unet.y", "unet.z"]
    for place, change in deltas(whole).items():
        assert torch.allclose(change, expected(PARTS, place), atol=1e-6)
    spec = whole.specs["unet"]
    assert (spec.rank, spec.rank_pattern) == (5, {"x": 2, "z": 3})
    assert spec.targets == ("x", "y", "z")


def test_linear_is_the_true_sum_in_the_fewest_ranks():
    one, two = made(2, 1), made(2, 2)
    shared = {**two.tensors, **{key: value for key, value in one.tensors.items() if "lora_A" in key}}
    both = {"a": (one, 0.7), "b": (dataclasses.replace(two, tensors=shared), -1.2)}
    small = blend(both, method="linear")
    assert small.specs["unet"].rank == 2  # they read the same, so the sum needs no more
    for place, change in deltas(small).items():
        assert torch.allclose(change, expected(both.values(), place), atol=1e-5)


@pytest.mark.parametrize("method", ["svd", "cat"])
def test_a_rank_gives_the_best_approximation(method):
    both = {"a": (made(3, 1), 1.0), "b": (made(3, 2), 1.0)}
    small = blend(both, method=method, rank=2)
    assert small.specs["unet"].rank == 2
    for place, change in deltas(small).items():
        exact = expected(both.values(), place)
        rest = torch.linalg.svdvals(exact)[2:].norm()
        assert torch.allclose((exact - change).norm(), rest, atol=1e-5)


def test_svd_takes_the_largest_rank_or_an_energy():
    both = {"a": (made(3, 1), 1.0), "b": (made(2, 2), 1.0)}
    assert blend(both, method="svd").specs["unet"].rank == 3
    exact = blend(both, method="svd", energy=1.0)
    assert all(torch.allclose(d, expected(both.values(), p), atol=1e-5) for p, d in deltas(exact).items())


def test_blends_do_not_change_what_they_are_given():
    one, two = made(seed=1), made(seed=2)
    before = {key: value.clone() for key, value in one.tensors.items()}
    for method in BLENDS:
        blend({"a": (one, 0.5), "b": (two, 0.4)}, method=method)
    assert all(torch.equal(one.tensors[key], before[key]) for key in before)


def about(adapter, heads=None, **metadata):
    return dataclasses.replace(adapter, metadata=AdapterMetadata(**metadata), heads=heads or {})


FAULTS = {
    "unknown blend": ({"a": (made(), 1.0)}, {"method": "cut"}, r"No blend is named 'cut'.*Did you mean 'cat'\?"),
    "nothing": ({}, {}, "Nothing to blend"),
    "unknown parameter": (
        {"a": (made(), 0.5)},
        {"temperature": 1},
        "The blend 'cat' takes no parameters, not 'temperature'",
    ),
    "families": (
        {"a": (about(made(), family="sd1"), 1.0), "b": (about(made(), family="sdxl"), 1.0)},
        {},
        "different families cannot be blended",
    ),
    "bases": (
        {"a": (about(made(), base_hash="1"), 1.0), "b": (about(made(), base_hash="2"), 1.0)},
        {},
        "different bases",
    ),
    "words": (
        {n: (about(made(), heads={"text_encoder.token.<x>": torch.zeros(1, 2)}), 1.0) for n in "ab"},
        {},
        "train them with different words",
    ),
    "shapes": ({"a": (made(), 1.0), "b": (made(inn=7), 1.0)}, {}, r"'unet.x' has shape \(6, 7\) in 'b'"),
    "dora": (
        {"a": (made(), 1.0), "b": (dataclasses.replace(made(), specs={"unet": DoraSpec(rank=2)}), 1.0)},
        {},
        "'b' of method 'dora' cannot be blended as it is: .*give base=… and rank=…",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_faults_are_named(fault):
    parts, options, message = FAULTS[fault]
    with pytest.raises(AdapterError, match=message):
        blend(parts, **options)


def test_words_and_metadata_are_joined():
    first = about(made(seed=1), {"text_encoder.token.<x>": torch.ones(1, 2)}, family="sd1", trigger_words=("<x>",))
    second = about(made(seed=2), {"text_encoder.token.<y>": torch.zeros(1, 2)}, base_hash="9", trigger_words=("<y>",))
    both = blend({"a": (first, 0.5), "b": (second, 1.0)})
    assert sorted(both.heads) == ["text_encoder.token.<x>", "text_encoder.token.<y>"]
    assert both.metadata.trigger_words == ("<x>", "<y>")
    assert (both.metadata.family, both.metadata.base_hash) == ("sd1", "9")
    assert both.metadata.extra == {"blend": "a=0.5, b=1", "blend_method": "cat", "blend_energy_kept": "1.000000"}


@every_model
@every_layered_method
def test_any_method_becomes_lora(kind, method):
    model = MODELS[kind]()
    value = trained(method, model)
    model.manager.activate("a")
    live = model.run()
    base = model.manager.base_weights(model.manager._held["a"].places)
    if METHODS[method].scales_bias:
        with pytest.raises(AdapterError, match="scales the bias too"):
            value.to_lora(energy=1.0, base=base)
        return
    if METHODS[method].low_rank:
        lora = value.to_lora()
    else:
        with pytest.raises(AdapterError, match="give base=… and rank=… or energy=…"):
            value.to_lora(rank=4)
        lora = value.to_lora(energy=1.0, base=base)
    exact = deltas(value, base)
    assert all(torch.allclose(change, exact[place], atol=1e-5) for place, change in deltas(lora).items())
    model.manager.remove("a")
    model.manager.attach("lora", lora)
    assert torch.allclose(model.run(), live, atol=1e-4)
    model.manager.remove("lora")
    model.manager.attach("small", value.to_lora(rank=1, base=base))
    assert {spec.rank for spec in model.manager.capture("small").specs.values()} == {1}


def test_ia3_over_layers_without_bias_becomes_lora():
    model = MODELS["sd1"]()
    model.targets = {"unet": ("attention.k", "attention.v")}
    model.manager.add("a", spec_for("ia3", model))
    stir(model.manager, "a")
    live = model.run()
    base = model.manager.base_weights(model.manager._held["a"].places)
    lora = model.manager.capture("a").to_lora(energy=1.0, base=base)
    model.manager.remove("a")
    model.manager.attach("lora", lora)
    assert torch.allclose(model.run(), live, atol=1e-4)

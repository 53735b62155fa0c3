"""Heads: many of them on one base, chosen by activation, saved and rebuilt, and the base's own as it was."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

from tests.adapters.cases import MODELS, same, spec_for, stir
from tests.tiny import tiny_sd1
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import FullSpec, LoraSpec, ProbeSpec
from visionpeft.errors import AdapterError
from visionpeft.models.family import Family, Targeting
from visionpeft.models.manage import manage

PLACE = "model.classifier"
CELLS = {"labels": ["red", "white", "platelets"], "preprocessing": {"size": [32, 32]}}
DIGITS = {"labels": [str(digit) for digit in range(10)]}


@pytest.fixture
def vit():
    model = MODELS["vit"]()
    model.targets = {"model": "attention"}
    return model


def linear(outputs, seed=0, inputs=32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs)


def begin(model, name, outputs, about, seed=0, method="lora"):
    spec = spec_for(method, model) if method != "probe" else ProbeSpec()
    report = model.manager.add(name, spec, heads={PLACE: linear(outputs, seed)}, about=about)
    stir(model.manager, name, seed)
    return report


def test_several_heads_live_on_one_base_and_activation_chooses(vit):
    state, types, before = vit.state(), vit.types(), vit.run()
    report = begin(vit, "cells", 3, CELLS)
    assert report.parameters == report.modules["model"] * 2 * 3 * 32 + 3 * 32 + 3
    assert vit.run().shape == (2, 3)
    vit.manager.activate({})
    begin(vit, "digits", 10, DIGITS, 1, "probe")
    assert vit.manager.status()["digits"].report.modules == {"model": 0}
    outs = {}
    for name, outputs in (("cells", 3), ("digits", 10)):
        vit.manager.activate(name)
        outs[name] = vit.run()
        assert outs[name].shape == (2, outputs)
    with vit.manager.using({"cells": 0.5}):
        assert vit.run().shape == (2, 3)
    with vit.manager.using({}):
        assert torch.equal(vit.run(), before)
    vit.manager.remove("cells")
    assert torch.equal(vit.run(), outs["digits"])
    vit.manager.remove("digits")
    vit.assert_plain(state, types)


def test_different_heads_never_answer_together(vit):
    begin(vit, "a", 3, CELLS)
    begin(vit, "a+b", 10, DIGITS, 1)
    message = r"'a' and 'a\+b' are both active and have different heads at 'model.classifier' \(3 labels, 10 labels\)"
    with pytest.raises(AdapterError, match=message):
        vit.run()
    with pytest.raises(AdapterError, match="activate one"):
        vit.manager.merge()
    vit.manager.activate("a")
    out = vit.run()
    with pytest.raises(AdapterError, match=message):
        vit.manager.activate(["a", "a+b"])
    with pytest.raises(AdapterError, match=message), vit.manager.using(["a", "a+b"]):
        pass
    assert torch.equal(vit.run(), out)
    other = MODELS["vit"]()
    begin(other, "x", 3, CELLS)
    begin(other, "y", 3, {"labels": ["p", "q", "r"]})
    with pytest.raises(AdapterError, match="different heads"):
        other.run()


def test_equal_heads_answer_with_their_mean_live_blended_and_merged(vit):
    begin(vit, "a", 3, CELLS, 1, "probe")
    begin(vit, "b", 3, CELLS, 2, "probe")
    parts = {name: vit.manager.capture(name) for name in ("a", "b")}
    said = {}
    for name in parts:
        vit.manager.activate(name)
        said[name] = vit.run()
    vit.manager.activate({"a": 1.0, "b": 0.5})
    mean = (said["a"] + 0.5 * said["b"]) / 1.5
    assert torch.allclose(vit.run(), mean, atol=1e-6)
    vit.manager.merge()
    assert type(vit.manager.components["model"].classifier) is nn.Linear
    assert torch.allclose(vit.run(), mean, atol=1e-6)
    vit.manager.unmerge()
    vit.manager.remove("a", "b")
    both = blend({"a": (parts["a"], 1.0), "b": (parts["b"], 0.5)})
    assert both.specs == {"model": ProbeSpec()}
    assert both.metadata.heads == CELLS
    vit.manager.attach("both", both)
    assert torch.allclose(vit.run(), mean, atol=1e-6)
    with pytest.raises(AdapterError, match="sum to 0"):
        blend({"a": (parts["a"], 1.0), "b": (parts["b"], -1.0)})


def test_lora_blends_with_heads(vit):
    begin(vit, "a", 3, CELLS, 1)
    begin(vit, "b", 3, CELLS, 2)
    begin(vit, "none", 10, DIGITS, 3)
    vit.manager.activate({"a": 1.0, "b": 0.5})
    live = vit.run()
    parts = {name: vit.manager.capture(name) for name in ("a", "b", "none")}
    vit.manager.remove("a", "b", "none")
    vit.manager.attach("both", blend({"a": (parts["a"], 1.0), "b": (parts["b"], 0.5)}))
    assert torch.allclose(vit.run(), live, atol=1e-5)
    with pytest.raises(AdapterError, match="'a' and 'none' have different heads"):
        blend({"a": (parts["a"], 1.0), "none": (parts["none"], 1.0)})
    plain = dataclasses.replace(parts["none"], heads={}, metadata=parts["a"].metadata.model_copy(
        update={"heads": {}, "head_modules": {}}))  # fmt: skip
    assert blend({"a": (parts["a"], 1.0), "plain": (plain, 1.0)}).metadata.head_modules == {PLACE: ("weight", "bias")}


@pytest.mark.parametrize("method", ["lora", "probe", "full"])
def test_a_head_travels_in_the_file(vit, tmp_path, method):
    begin(vit, "a", 10, DIGITS, method=method)
    value = vit.manager.capture("a")
    assert sorted(value.heads) == [f"{PLACE}.bias", f"{PLACE}.weight"]
    assert value.metadata.heads == DIGITS
    assert not any(key.startswith(PLACE) for key in value.tensors)
    live = vit.run()
    vit.manager.remove("a")
    vit.manager.attach("again", value.save(tmp_path / "a.safetensors"))
    assert torch.allclose(vit.run(), live, atol=1e-6)
    assert same(vit.manager.capture("again"), value)
    vit.manager.remove("again")
    vit.manager.attach("more", value, trainable=True)
    assert [tuple(p.shape) for p in vit.manager.trainable("more")["model"][-2:]] == [(10, 32), (10,)]


def test_merging_puts_the_head_in_place_and_unmerging_is_exact(vit):
    state, types = vit.state(), vit.types()
    begin(vit, "a", 10, DIGITS)
    live = vit.run()
    vit.manager.merge()
    assert list(vit.state()) == list(state)
    assert vit.types() == types
    assert vit.state()["model.classifier.weight"].shape == (10, 32)
    assert torch.allclose(vit.run(), live, atol=1e-5)
    vit.manager.unmerge()
    assert torch.equal(vit.run(), live)
    vit.manager.remove("a")
    vit.assert_plain(state, types)


def test_a_head_swaps_in_place(vit):
    begin(vit, "a", 10, DIGITS)
    first, out = vit.manager.capture("a"), vit.run()
    where = [p.data_ptr() for p in vit.manager.trainable("a")["model"]]
    stir(vit.manager, "a", 7)
    assert not torch.allclose(vit.run(), out, atol=1e-3)
    vit.manager.swap("a", first)
    assert torch.equal(vit.run(), out)
    assert [p.data_ptr() for p in vit.manager.trainable("a")["model"]] == where
    bare = dataclasses.replace(first, heads={})
    with pytest.raises(AdapterError, match=r"the head 'model.classifier.bias' is only in one"):
        vit.manager.swap("a", bare)


def with_heads(value, **heads):
    return dataclasses.replace(value, heads={**value.heads, **heads})


FAULTS = {
    "missing": (lambda v: dataclasses.replace(v, heads={f"{PLACE}.weight": v.heads[f"{PLACE}.weight"]}),
                "misses the tensor 'model.classifier.bias' of its head"),
    "unexpected": (lambda v: with_heads(v, **{f"{PLACE}.scale": torch.ones(1)}),
                   "brings the head 'model.classifier.scale', which it does not list"),
    "shape": (lambda v: with_heads(v, **{f"{PLACE}.weight": torch.ones(3)}), "'weight' of shape"),
    "place": (lambda v: dataclasses.replace(
        v, heads={k.replace("classifier", "klassifier"): t for k, t in v.heads.items()},
        metadata=v.metadata.model_copy(update={"head_modules": {"model.klassifier": ("weight", "bias")}})),
        "no module 'model.klassifier' in this model. Did you mean 'model.classifier'"),
    "words": (lambda v: with_heads(v, **{"text_encoder.token.<x>": torch.ones(1, 2)}), "has no place for"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_faults_of_heads_attach_nothing(vit, fault):
    change, message = FAULTS[fault]
    begin(vit, "a", 3, CELLS)
    value = vit.manager.capture("a")
    vit.manager.remove("a")
    state, types = vit.state(), vit.types()
    with pytest.raises(AdapterError, match=message):
        vit.manager.attach("a", change(value))
    vit.assert_plain(state, types)
    assert vit.manager.names == []


ODD = {
    "unknown place": ({"model.klassifier": linear(3)}, LoraSpec(), "Did you mean 'model.classifier'"),
    "no file could tell": (
        {PLACE: nn.Sequential(linear(3), nn.ReLU())},
        LoraSpec(),
        "only in one of it and the base's",
    ),
    "another kind": ({PLACE: nn.Bilinear(3, 4, 5)}, LoraSpec(), "'weight' of shape|would make"),
    "no parameters": ({PLACE: nn.Identity()}, LoraSpec(), "has no parameters"),
    "buffers": ({PLACE: nn.BatchNorm1d(3)}, LoraSpec(), "has buffers"),
    "targeted": ({PLACE: linear(3)}, LoraSpec(targets="classifier"), "in a head that the adapter brings"),
    "none": ({}, ProbeSpec(), "trains heads alone, and none are given"),
}


@pytest.mark.parametrize("fault", sorted(ODD))
def test_odd_heads_are_refused(vit, fault):
    heads, spec, message = ODD[fault]
    with pytest.raises(AdapterError, match=message):
        vit.manager.add("a", spec, heads=heads)
    assert vit.manager.names == []


def test_the_heads_of_one_adapter_stay_float32_in_a_half_model(vit):
    begin(vit, "a", 3, CELLS)
    full, value = vit.run(), vit.manager.capture("a")
    model = vit.manager.components["model"].to(torch.bfloat16)
    assert same(vit.manager.capture("a"), value)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(1)).bfloat16()
    out = model(pixels).logits
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), full, atol=0.1)
    vit.manager.merge()
    assert model.classifier.weight.dtype == torch.bfloat16


def test_what_is_given_is_copied_and_weights_reach_heads_by_prefix(vit):
    head = linear(3)
    vit.manager.add("a", spec_for("lora", vit), heads={PLACE: head}, about=CELLS)
    stir(vit.manager, "a")
    assert torch.equal(head.weight, linear(3).weight)
    own = vit.manager.parameters("a")
    assert list(own)[-2:] == [f"{PLACE}.weight", f"{PLACE}.bias"]
    assert [id(p) for p in own.values()] == [id(p) for p in vit.manager.trainable("a")["model"]]
    vit.manager.activate({"a": {"model.vit": 1.0, PLACE: 0.0}})
    features = vit.manager.components["model"].classifier
    assert features.active == ()
    with pytest.raises(AdapterError, match=r"no weight for 'model.classifier'"):
        vit.manager.activate({"a": {"model.vit": 1.0}})


def test_words_and_heads_do_not_mix_up():
    manager = manage(tiny_sd1())
    manager.add("a", LoraSpec(), tokens={"<robot>": "toy"})
    value = manager.capture("a")
    assert value.metadata.head_modules == {}
    manager.remove("a")
    manager.attach("b", value)
    assert manager.words("b") == ["<robot>"]


# ---------------------------------------------------------------------- detectors

BACKBONE = {
    "use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False,
    "backbone_config": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    ),
}  # fmt: skip
SMALL = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5, "num_labels": 3,
}  # fmt: skip
ANY = Family("any", {"model": Targeting(semantic={}, head=r"embed|classifier")}, lambda model: {"model": model})


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def detr():
    return seeded(lambda: DetrForObjectDetection(DetrConfig(**SMALL, **BACKBONE)))


def deformable():
    config = DeformableDetrConfig(**SMALL, **BACKBONE, num_feature_levels=2)
    return seeded(lambda: DeformableDetrForObjectDetection(config))


PIXELS = torch.randn(1, 3, 64, 64, generator=torch.manual_seed(3))


def test_class_and_box_heads_of_a_detector(tmp_path):
    model = detr()
    manager = AdapterManager({"model": model}, ANY)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    boxes = copy.deepcopy(model.bbox_predictor)
    heads = {"model.class_labels_classifier": linear(8), "model.bbox_predictor": boxes}
    manager.add("a", ProbeSpec(), heads=heads, about={"labels": list("abcdefg")})
    stir(manager, "a")
    out = model(PIXELS)
    assert out.logits.shape == (1, 5, 8)
    value = manager.capture("a")
    assert "model.bbox_predictor.layers.2.bias" in value.heads
    manager.remove("a")
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    manager.attach("b", value.save(tmp_path / "a.safetensors"))
    again = model(PIXELS)
    assert torch.equal(again.logits, out.logits)
    assert torch.equal(again.pred_boxes, out.pred_boxes)
    assert same(manager.capture("b"), value)
    manager.attach("c", value)
    manager.activate(["b", "c"])
    with pytest.raises(AdapterError, match=r"mean of several heads at 'model.bbox_predictor' is no module"):
        manager.merge()
    with pytest.raises(AdapterError, match=r"heads at 'model.bbox_predictor' are not linear"):
        blend({"b": (value, 1.0), "c": (value, 1.0)})


def test_an_mlp_head_may_have_other_sizes_but_not_another_structure():
    model = detr()
    manager = AdapterManager({"model": model}, ANY)
    wide = copy.deepcopy(model.bbox_predictor)
    wide.layers[0], wide.layers[1] = nn.Linear(32, 48), nn.Linear(48, 32)
    manager.add("a", ProbeSpec(), heads={"model.bbox_predictor": wide})
    assert model(PIXELS).pred_boxes.shape == (1, 5, 4)
    value = manager.capture("a")
    manager.remove("a")
    manager.attach("b", value)
    assert same(manager.capture("b"), value)
    deep = copy.deepcopy(wide)
    deep.layers.append(nn.Linear(4, 4))
    with pytest.raises(AdapterError, match=r"'layers.3.bias' is only in one of it and the base's head"):
        manager.add("c", ProbeSpec(), heads={"model.bbox_predictor": deep})


def test_a_tied_head_answers_wherever_the_base_has_it(tmp_path):
    model = deformable()
    assert model.class_embed[0].weight is model.class_embed[1].weight
    manager = AdapterManager({"model": model}, ANY)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    manager.add("a", ProbeSpec(), heads={"model.class_embed.0": linear(7)}, about={"labels": list("abcdefg")})
    stir(manager, "a")
    assert sorted(manager.capture("a").heads) == ["model.class_embed.0.bias", "model.class_embed.0.weight"]
    out = model(PIXELS)
    assert out.logits.shape == (1, 5, 7)
    assert len(manager.trainable("a")["model"]) == 2
    value = manager.capture("a")
    manager.remove("a")
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert model.class_embed[0].weight is model.class_embed[1].weight
    manager.attach("b", value.save(tmp_path / "a.safetensors"))
    assert torch.equal(model(PIXELS).logits, out.logits)
    manager.merge()
    assert torch.allclose(model(PIXELS).logits, out.logits, atol=1e-5)
    manager.unmerge()
    assert torch.equal(model(PIXELS).logits, out.logits)


def test_one_module_under_two_names_is_one_head():
    model = deformable()
    shared = model.class_embed[0]
    model.class_embed = nn.ModuleList([shared, shared])  # as transformers had it before 5.9
    manager = AdapterManager({"model": model}, ANY)
    manager.add("a", ProbeSpec(), heads={"model.class_embed.1": linear(7)}, about={"labels": list("abcdefg")})
    assert list(manager.capture("a").metadata.head_modules) == ["model.class_embed.0"]
    assert model(PIXELS).logits.shape == (1, 5, 7)
    manager.remove("a")
    assert model.class_embed[0] is shared
    assert model.class_embed[1] is shared
    manager.add("l", LoraSpec(targets="class_embed.0"))
    stir(manager, "l")
    assert model.class_embed[0] is model.class_embed[1]
    manager.remove("l")
    with pytest.raises(AdapterError, match=r"Two heads are given for 'model.class_embed.0'"):
        manager.add("b", ProbeSpec(), heads={"model.class_embed.0": linear(7), "model.class_embed.1": linear(7)})
    head = linear(7)
    with pytest.raises(AdapterError, match="which are two in the base: give each its own"):
        manager.add("b", ProbeSpec(), heads={"model.class_embed.0": head, "model.model.reference_points": head})


def test_an_embedding_by_label_grows_with_its_padding(tmp_path):
    model = nn.Module()
    model.embed, model.out = nn.Embedding(4, 8, padding_idx=3), nn.Linear(8, 2)
    manager = AdapterManager({"model": model}, ANY)
    manager.add("a", ProbeSpec(), heads={"model.embed": nn.Embedding(6, 8, padding_idx=5)})
    value = manager.capture("a")
    manager.remove("a")
    manager.attach("b", value)
    head = model.embed.branch("b").module
    assert (head.num_embeddings, head.padding_idx) == (6, 5)
    assert model.embed(torch.tensor([[0, 5]])).shape == (1, 2, 8)
    value = Adapter(value.specs, {}, value.heads, value.metadata)
    assert value.save(tmp_path / "a.safetensors").exists()


def test_full_leaves_its_own_head_to_the_head(vit):
    vit.manager.add("a", FullSpec(), heads={PLACE: linear(3)}, about=CELLS)
    assert f"{PLACE}.weight.diff" not in vit.manager.capture("a").tensors
    vit.manager.add("b", FullSpec())
    assert f"{PLACE}.weight.diff" in vit.manager.capture("b").tensors

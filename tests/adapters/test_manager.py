"""The manager's strictness, names, weights, types and words."""

import dataclasses

import pytest
import torch
from torch import nn

from tests.adapters.cases import HOME, MODELS, base_of, begin, diffusion, same, spec_for, stir, trained
from tests.tiny import tiny_sd1, tiny_sdxl, tiny_vit
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.methods import METHODS
from visionpeft.adapters.spec import Ia3Spec, LoraSpec, OftSpec
from visionpeft.errors import AdapterError, BaseModelError, TargetError
from visionpeft.models.manage import manage
from visionpeft.models.prompts import cut_prompt, encode_prompts, token_ids

Q1 = "model.vit.layers.1.attention.q_proj"


@pytest.fixture
def vit():
    model = MODELS["vit"]()
    model.targets = {"model": "attention"}
    return model


def without(adapter, key):
    return dataclasses.replace(adapter, tensors={k: v for k, v in adapter.tensors.items() if k != key})


def with_tensor(adapter, key, value):
    return dataclasses.replace(adapter, tensors={**adapter.tensors, key: value})


FAULTS = {
    "missing tensor": (lambda a: without(a, f"{Q1}.lora_A.weight"), "misses the tensor 'lora_A.weight'"),
    "missing module": (
        lambda a: without(without(a, f"{Q1}.lora_A.weight"), f"{Q1}.lora_B.weight"),
        f"misses the tensors of '{Q1}'",
    ),
    "unexpected module": (
        lambda a: with_tensor(a, "model.vit.layers.0.mlp.fc1.lora_A.weight", torch.zeros(3, 32)),
        "mlp.fc1', which its spec does not target",
    ),
    "unknown module": (
        lambda a: with_tensor(a, "model.vit.layers.7.attention.q_proj.lora_A.weight", torch.zeros(3, 32)),
        r"no such layer. Did you mean 'model.vit.layers.\d.attention.q_proj'",
    ),
    "unexpected parameter": (
        lambda a: with_tensor(a, f"{Q1}.lora_magnitude_vector", torch.zeros(32)),
        "has 'lora_magnitude_vector'; lora has only",
    ),
    "unknown parameter": (lambda a: with_tensor(a, f"{Q1}.extra", torch.zeros(1)), "no parameter of any method"),
    "wrong shape": (
        lambda a: with_tensor(a, f"{Q1}.lora_A.weight", torch.zeros(3, 16)),
        r"'model.vit.layers.1.attention.q_proj': tensors of shapes .*do not fit a weight of shape \(32, 32\)",
    ),
    "wrong rank": (
        lambda a: with_tensor(
            with_tensor(a, f"{Q1}.lora_A.weight", torch.zeros(5, 32)), f"{Q1}.lora_B.weight", torch.zeros(32, 5)
        ),
        "at rank 3",
    ),
    "family": (
        lambda a: dataclasses.replace(a, metadata=a.metadata.model_copy(update={"family": "sd1"})),
        "made for the family 'sd1'; this model is 'vit'",
    ),
    "component": (lambda a: dataclasses.replace(a, specs={"modle": a.specs["model"]}), r"Did you mean 'model'\?"),
    "head": (lambda a: dataclasses.replace(a, heads={"classifier.weight": torch.zeros(1)}), "head 'classifier.weight'"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_attach_is_strict_and_all_or_nothing(vit, fault):
    good = trained("lora", vit)
    vit.manager.remove("a")
    state, types = vit.state(), vit.types()
    spoil, message = FAULTS[fault]
    with pytest.raises(AdapterError, match=message):
        vit.manager.attach("a", spoil(good))
    assert vit.manager.names == []
    vit.assert_plain(state, types)
    vit.manager.attach("a", good)


def test_swap_refuses_what_is_not_equal(vit):
    good = trained("lora", vit)
    before = vit.run()
    for name in ("missing tensor", "wrong shape", "wrong rank", "unexpected parameter"):
        with pytest.raises(AdapterError, match="swap takes equal"):
            vit.manager.swap("a", FAULTS[name][0](good))
    louder = {"model": good.specs["model"].model_copy(update={"alpha": 9.0})}
    with pytest.raises(AdapterError, match="another scale"):
        vit.manager.swap("a", dataclasses.replace(good, specs=louder))
    assert torch.equal(vit.run(), before)


def test_an_adapter_of_other_weights_needs_consent():
    model = diffusion(tiny_sd1())
    adapter = trained("lora", model)
    model.manager.remove("a")
    about = adapter.metadata.model_copy(update={"base": "some/base", "base_hash": "1" * 64})
    other = dataclasses.replace(adapter, metadata=about)
    model.manager.base_hash = "0" * 64
    with pytest.raises(AdapterError, match=r"made on 'some/base', this model is '.*other_base=True"):
        model.manager.attach("a", other)
    model.manager.attach("a", other, other_base=True)
    assert same(model.manager.capture("a"), other)


@pytest.mark.parametrize("names", [("a", "aa"), ("unet", "lora_A"), ("keys", "weight"), ("1", "11"), ("x", "x-x")])
def test_a_name_within_another_never_matters(vit, names):
    values = {name: trained("lora", vit, name, place) for place, name in enumerate(names)}
    one, two = names
    for name in names:
        assert same(vit.manager.capture(name), values[name])
    vit.manager.activate(one)
    alone = vit.run()
    vit.manager.remove(two)
    assert vit.manager.names == [one]
    assert torch.equal(vit.run(), alone)
    assert same(vit.manager.capture(one), values[one])


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a/b", "ü:"])
def test_odd_names_are_refused(vit, name):
    with pytest.raises(AdapterError, match="use letters, digits"):
        vit.manager.add(name, LoraSpec())


def test_names_are_unique_and_known(vit):
    vit.manager.add("robot", LoraSpec())
    with pytest.raises(AdapterError, match="named 'robot' already"):
        vit.manager.add("robot", LoraSpec())
    for act in (
        vit.manager.remove,
        vit.manager.capture,
        vit.manager.activate,
        vit.manager.trainable,
        vit.manager.words,
    ):
        with pytest.raises(AdapterError, match=r"No adapter is named 'robt'; there are robot. Did you mean 'robot'\?"):
            act("robt")
    assert vit.manager.names == ["robot"]


def test_no_target_says_what_there_is():
    manager = manage(tiny_sd1())
    with pytest.raises(TargetError) as caught:
        manager.add("a", LoraSpec(targets="atention"))
    for part in ("'atention'", "'unet'", "self-attention", "to_q", "Did you mean 'attention'?"):
        assert part in str(caught.value)
    with pytest.raises(TargetError, match="cross-attention"):
        manager.add("a", LoraSpec(targets={"unet": "attention", "text_encoder": "cross-attention"}))
    with pytest.raises(TargetError, match="no regular expression"):
        manager.add("a", LoraSpec(targets="re:("))
    with pytest.raises(TargetError, match="No targets"):
        manager.add("a", LoraSpec(targets=()))
    with pytest.raises(
        AdapterError, match=r"Component 'unett': this model has unet, text_encoder. Did you mean 'unet'\?"
    ):
        manager.add("a", LoraSpec(targets={"unett": "attention"}))
    with pytest.raises(AdapterError, match="sets a rank or alpha for 'nothing'"):
        manager.add("a", LoraSpec(rank_pattern={"nothing": 2}))
    assert manager.names == []
    assert not any("branches" in key for key in manager.components["unet"].state_dict())


def test_specs_by_component_and_plain_targets():
    manager = manage(tiny_sdxl())
    assert set(manager.add("plain", LoraSpec(targets="mlp")).modules) == {"unet"}
    report = manager.add("both", {"text_encoder_2": OftSpec(block_size=4), "unet": LoraSpec(rank=2)})
    assert list(report.modules) == ["unet", "text_encoder_2"]
    status = manager.status()["both"]
    assert status.methods == {"unet": "lora", "text_encoder_2": "oft"}
    assert status.trainable
    assert not status.merged
    assert status.report == report
    assert report.bytes == 4 * report.parameters
    assert list(manager.trainable()) == ["unet", "text_encoder_2"]


def test_weights_by_component_and_longest_prefix():
    model = MODELS["sd1"]()
    trained("lora", model)
    tree = model.manager._tree.adapted
    model.manager.activate(
        {"a": {"unet": 1.0, "unet.mid_block": 0.5, "unet.mid_block.resnets.1": 0.0, "text_encoder": -1}}
    )
    weights = {place: dict(layer.active).get("a", 0.0) for place, layer in tree.items()}
    assert weights["unet.conv_in"] == 1.0
    assert weights["unet.mid_block.attentions.0.proj_in"] == 0.5
    assert weights["unet.mid_block.resnets.1.conv1"] == 0.0
    assert weights["text_encoder.text_model.encoder.layers.0.mlp.fc1"] == -1
    model.manager.activate({"a": {"unet": 1.0, "*": 0.25}})
    assert dict(tree["text_encoder.text_model.encoder.layers.0.mlp.fc1"].active) == {"a": 0.25}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": {"unet": 1.0}}, r"no weight for 'text_encoder\..*add 'text_encoder' or '\*'"),
        ({"a": {"unett": 1.0, "*": 1}}, r"nothing at 'unett'; it is in text_encoder, unet. Did you mean 'unet'\?"),
        ({"a": {"unet.mid": 1.0, "*": 1}}, "nothing at 'unet.mid'"),
        ({"a": float("nan")}, "give a finite number"),
        ({"a": True}, "give a finite number"),
        ({"b": 1.0}, "No adapter is named 'b'"),
    ],
)
def test_odd_weights_are_refused_and_change_nothing(weights, message):
    model = MODELS["sd1"]()
    trained("lora", model)
    out = model.run()
    with pytest.raises(AdapterError, match=message):
        model.manager.activate(weights)
    assert torch.equal(model.run(), out)


def test_using_restores_after_an_error_and_nests(vit):
    trained("lora", vit, "a", 1)
    trained("lora", vit, "b", 2)
    vit.manager.activate({"a": 0.5})
    out = vit.run()
    with vit.manager.using({"b": 1.0}), vit.manager.using({}):
        pass
    with pytest.raises(ZeroDivisionError), vit.manager.using({"b": 1.0}):
        raise ZeroDivisionError
    assert torch.equal(vit.run(), out)


def test_while_merged_nothing_else_may_happen(vit):
    trained("lora", vit)
    vit.manager.merge({"a": 0.5})
    assert vit.manager.status()["a"].merged
    for act in (vit.manager.merge, lambda: vit.manager.add("b", LoraSpec()), lambda: vit.manager.remove("a")):
        with pytest.raises(AdapterError, match=r"call unmerge\(\) first"):
            act()
    vit.manager.unmerge()
    with pytest.raises(AdapterError, match="Nothing is merged"):
        vit.manager.unmerge()


def test_merging_nothing_is_undone_too(vit):
    state = vit.state()
    vit.manager.merge()
    vit.manager.unmerge()
    trained("lora", vit)
    vit.manager.merge({})
    assert list(vit.state()) == list(state)
    vit.manager.unmerge()
    assert vit.manager.status()["a"].weight == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", sorted(name for name in METHODS if HOME.get(name, "vit") == "vit"))
def test_a_half_base_keeps_float32_masters(vit, method, dtype, autocast):
    begin(method, vit)
    stir(vit.manager, "a", size=0.05)
    full = vit.run()
    masters = vit.manager.capture("a")
    model = vit.manager.components["model"].to(dtype)
    assert same(vit.manager.capture("a"), masters)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(1))
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = model(pixels if autocast else pixels.to(dtype)).logits
    assert out.dtype == dtype
    assert torch.allclose(out.float(), full, atol=0.05)
    out.float().square().mean().backward()
    grads = [p.grad for ps in vit.manager.trainable("a").values() for p in ps]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_a_half_base_unmerges_bit_for_bit(vit):
    vit.manager.components["model"].to(torch.bfloat16)
    state, types = vit.state(), vit.types()
    trained("lora", vit)
    vit.manager.merge()
    vit.manager.unmerge()
    vit.manager.remove("a")
    vit.assert_plain(state, types)


def test_dropout_acts_in_training_only(vit):
    vit.manager.add("a", spec_for("lora", vit, dropout=0.5))
    stir(vit.manager, "a")
    assert torch.equal(vit.run(), vit.run())
    vit.manager.components["model"].train()
    assert not torch.equal(vit.run(), vit.run())
    vit.manager.activate({})
    assert torch.equal(vit.run(), vit.run())


def test_first_values_depend_on_the_seed_alone(vit):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    vit.manager.add("a", LoraSpec(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    first = vit.manager.capture("a")
    vit.manager.remove("a")
    torch.manual_seed(4)
    vit.manager.add("a", LoraSpec(), seed=5)
    assert same(vit.manager.capture("a"), first)
    vit.manager.add("b", LoraSpec(), seed=6)
    assert not same(vit.manager.capture("b"), first)


def test_an_attached_adapter_may_train_on(vit):
    value = trained("lora", vit)
    vit.manager.attach("frozen", value)
    vit.manager.attach("more", value, trainable=True)
    assert vit.manager.trainable("frozen") == {}
    assert len(vit.manager.trainable("more")["model"]) == len(value.tensors)


class Eight(nn.Linear):
    """Stands for a quantized layer: whole numbers and a scale."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


def test_a_quantized_layer_takes_lora_and_refuses_the_rest():
    model = tiny_vit()
    attention = model.vit.layers[0].attention
    attention.q_proj = Eight(attention.q_proj)
    manager = manage(model)
    manager.add("a", LoraSpec(targets="attention"))
    stir(manager, "a")
    pixels = torch.randn(1, 3, 32, 32)
    out = model(pixels).logits
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AdapterError, match=r"q_proj' is quantized and takes no merge: load the base in 16 or 32 bit"):
        manager.merge()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(pixels).logits, out)
    for spec in (OftSpec(), Ia3Spec()):
        with pytest.raises(AdapterError, match="needs the weights, but they are quantized"):
            manager.add("b", spec)
    with pytest.raises(AdapterError, match="init 'pissa' needs the weights"):
        manager.add("b", LoraSpec(init="pissa"))


def test_layers_that_cannot_be_adapted_are_named():
    model = tiny_vit()
    model.vit.embeddings.patch_embeddings.projection = nn.Conv2d(3, 33, 8, stride=8, groups=3)
    with pytest.raises(AdapterError, match="grouped convolutions"):
        manage(model).add("a", LoraSpec(targets="*.projection"))
    with pytest.raises(AdapterError, match="grouped convolutions"):
        manage(model).add("a", LoraSpec(targets="conv"))
    with pytest.raises(AdapterError, match="takes a rank of at most 32 here, not 40"):
        manage(tiny_vit()).add("a", LoraSpec(rank=40, init="pissa"))


def test_ia3_scales_inputs_where_asked():
    model = tiny_vit()
    manager = manage(model)
    manager.add("a", Ia3Spec(targets=("attention.k", "mlp"), feedforward="fc2"))
    shapes = {
        key.rpartition(".ia3_l")[0].rpartition(".")[2]: tuple(t.shape)
        for key, t in manager.capture("a").tensors.items()
    }
    assert shapes == {"k_proj": (32, 1), "fc1": (64, 1), "fc2": (1, 64)}
    stir(manager, "a")
    pixels = torch.randn(1, 3, 32, 32)
    live = model(pixels).logits
    value = manager.capture("a")
    manager.merge()
    assert torch.allclose(model(pixels).logits, live, atol=1e-5)
    manager.unmerge()
    manager.remove("a")
    manager.attach("b", value)
    assert torch.equal(model(pixels).logits, live)


def test_one_manager_a_model():
    model = tiny_vit()
    manager = manage(model)
    manager.add("a", LoraSpec())
    with pytest.raises(AdapterError, match="adapted already"):
        manage(model)
    manager.remove("a")
    manage(model)
    with pytest.raises(BaseModelError, match="A Linear is of no family"):
        manage(nn.Linear(2, 2))


def test_managing_freezes_the_base():
    model = tiny_vit()
    manage(model)
    assert not any(p.requires_grad for p in model.parameters())


def vocabulary(tokenizer):
    return len(tokenizer), tokenizer("a <robot> dog").input_ids, sorted(tokenizer.get_added_vocab())


@pytest.mark.parametrize("build", [tiny_sd1, tiny_sdxl])
def test_trained_words_come_train_travel_and_go(build, tmp_path):
    pipeline = build()
    base, model = base_of(pipeline), diffusion(pipeline)
    manager, encoders = model.manager, base.text_encoders
    state, types = model.state(), model.types()
    before = [vocabulary(tokenizer) for tokenizer in base.tokenizers.values()]
    plain = encode_prompts(base, ["a photo of a toy"])
    manager.add("a", LoraSpec(), tokens={"<robot>": "toy", "<two>": "red dog"})
    assert manager.words("a") == ["<robot>", "<two>"]
    assert torch.equal(encode_prompts(base, ["a photo of a <robot>"]).hidden, plain.hidden)
    if plain.pooled is not None:
        assert torch.equal(encode_prompts(base, ["a photo of a <robot>"]).pooled, plain.pooled)
    assert len(set(token_ids(base, "text_encoder", ["a <two> dog"])[0].tolist())) == 6
    assert set(manager.trainable()) == {"unet", *encoders}
    encode_prompts(base, ["a <robot>"]).hidden.square().sum().backward()
    assert all(manager.trainable()[name][0].grad.any() for name in encoders)
    stir(manager, "a")
    told = encode_prompts(base, ["a photo of a <robot> and a <two>"])
    value = manager.capture("a")
    assert value.heads["text_encoder.token.<two>"].shape == (2, 32)
    assert value.metadata.trigger_words == ("<robot>", "<two>")
    manager.add("b", LoraSpec(), tokens={"<blue>": "blue"})
    manager.remove("a")
    assert manager.words("b") == ["<blue>"]
    assert torch.equal(encode_prompts(base, ["a <blue>"]).hidden, encode_prompts(base, ["a blue"]).hidden)
    manager.remove("b")
    model.assert_plain(state, types)
    assert [vocabulary(tokenizer) for tokenizer in base.tokenizers.values()] == before
    manager.attach("c", value.save(tmp_path / "a.safetensors"))
    assert torch.equal(encode_prompts(base, ["a photo of a <robot> and a <two>"]).hidden, told.hidden)
    assert same(manager.capture("c"), value)


def test_masters_of_words_stay_float32():
    pipeline = tiny_sd1()
    manager = manage(pipeline)
    manager.add("a", LoraSpec(), tokens={"<robot>": "toy"})
    stir(manager, "a")
    value = manager.capture("a")
    pipeline.text_encoder.to(torch.bfloat16)
    assert same(manager.capture("a"), value)
    assert encode_prompts(base_of(pipeline), ["a <robot>"]).hidden.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"a b": "toy"}, "one word without spaces"),
        ({"robot": "toy"}, "'robot' is a word of the model already; '<robot>' would do"),
        ({"<x>": ""}, "which has no tokens"),
        ({"<x>": "red dog", "<x>_1": "dog"}, "'<x>_1' would be in the tokenizer twice"),
        ({"<used>": "toy"}, "belongs to the adapter 'first'"),
    ],
)
def test_odd_words_are_refused(tokens, message):
    manager = manage(tiny_sd1())
    manager.add("first", LoraSpec(), tokens={"<used>": "dog"})
    with pytest.raises(AdapterError, match=message):
        manager.add("second", LoraSpec(), tokens=tokens)
    assert manager.names == ["first"]
    assert manager.words("first") == ["<used>"]


def test_words_need_a_text_encoder_with_its_tokenizer():
    with pytest.raises(AdapterError, match="need a text encoder"):
        manage(tiny_vit()).add("a", LoraSpec(), tokens={"<x>": "toy"})
    pipeline = tiny_sd1()
    pipeline.tokenizer = None
    with pytest.raises(AdapterError, match="need the tokenizer of 'text_encoder'"):
        manage(pipeline).add("a", LoraSpec(), tokens={"<x>": "toy"})


def test_a_long_prompt_is_cut_where_the_encoders_cut_it():
    base = base_of(tiny_sd1())
    assert cut_prompt(base, "a red dog") == ("a red dog", "")
    kept, cut = cut_prompt(base, "a red dog " * 30)
    assert len(base.pipeline.tokenizer(kept, add_special_tokens=False).input_ids) == 75
    assert cut == ("a red dog " * 30)[len(kept) :].strip()
    assert cut.startswith("a red dog")


def test_an_adapter_of_no_model_attaches_by_hand():
    model = tiny_vit()
    manager = manage(model)
    tensors = {f"{Q1}.lora_A.weight": torch.randn(2, 32), f"{Q1}.lora_B.weight": torch.randn(32, 2)}
    manager.attach("x", Adapter({"model": LoraSpec(targets=(Q1.partition(".")[2],), rank=2)}, tensors))
    assert manager.status()["x"].report.modules == {"model": 1}

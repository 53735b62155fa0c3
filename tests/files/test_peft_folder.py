"""The folder that peft loads: bit-equal tensors and the same outputs, on models of several families, both ways."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from tests.files import support
from tests.tiny import tiny_sd1, tiny_vit
from tests.tiny_vision import tiny_vision
from visionpeft import safefile
from visionpeft.adapters.algebra import deltas, modules
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import (
    DoraSpec,
    FullSpec,
    Ia3Spec,
    LohaSpec,
    LokrSpec,
    LoraSpec,
    OftSpec,
    RankSpec,
    RsLoraSpec,
    VptSpec,
    read_spec,
    scale_of,
)
from visionpeft.errors import AdapterError, FileFormatError, OutputError
from visionpeft.files import export, read
from visionpeft.files.folders import TENSORS
from visionpeft.files.peft_config import CONFIG
from visionpeft.files.peft_folder import PREFIX, read_peft, write_peft
from visionpeft.files.vllm import vllm_refusals
from visionpeft.inference.take_away import export_peft
from visionpeft.models.manage import manage

SPECS = {
    "lora": LoraSpec(targets="attention", rank=3, alpha=6.0, dropout=0.25),
    "rslora": RsLoraSpec(targets="attention", rank=3, alpha=6.0),
    "dora": DoraSpec(targets="attention", rank=3, alpha=6.0),
    "loha": LohaSpec(targets="attention", rank=2, alpha=3.0),
    "lokr": LokrSpec(targets="attention", rank=2, alpha=3.0),
    "lokr-both": LokrSpec(targets="attention", rank=2, alpha=3.0, decompose_both=True, factor=4),
    "oft": OftSpec(targets="attention", block_size=8),
    "oft-exact": OftSpec(targets="attention", block_size=5, neumann_terms=0),
    "ia3": Ia3Spec(targets=("attention", "mlp"), feedforward=("mlp",)),
}
CASES = [
    (kind, patterns) for kind, spec in SPECS.items() for patterns in (False, True)[: 1 + isinstance(spec, RankSpec)]
]
MODELS = {"vit": tiny_vit, "rt_detr": lambda: tiny_vision("rt_detr"), "yolos": lambda: tiny_vision("yolos")}


def fill(manager, name="a"):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for group in manager.trainable(name).values():
            for parameter in group:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def trained(model, spec, heads=None):
    manager = manage(model)
    manager.add("a", {"model": spec}, **({"heads": heads} if heads else {}))
    fill(manager)
    manager.activate("a")
    return manager.capture("a")


def with_patterns(spec, paths):
    first, second = paths[0], paths[1]
    return read_spec(spec.model_dump() | {"rank_pattern": {first: 5, second: 2}, "alpha_pattern": {second: 9.0}})


def pixels(name):
    side = 64 if name in ("rt_detr", "yolos") else 32
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))


def assert_same(adapter: Adapter, other: Adapter) -> None:
    assert set(adapter.tensors) == set(other.tensors)
    for name, tensor in adapter.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    for component, spec in adapter.specs.items():
        found = other.specs[component]
        assert found.method == spec.method
        paths = [place.partition(".")[2] for place in modules(adapter) if place.startswith(f"{component}.")]
        assert paths
        for path in paths:
            assert scale_of(found, path) == pytest.approx(scale_of(spec, path), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "patterns"), CASES)
def test_peft_loads_the_folder_bit_equal_and_computes_the_same(tmp_path, name, kind, patterns):
    model = MODELS[name]()
    fresh, spec = deepcopy(model), SPECS[kind]
    if patterns:
        layers = list(modules(trained(deepcopy(model), SPECS["lora"])))
        spec = with_patterns(spec, [place.removeprefix("model.") for place in layers])
    adapter = trained(model, spec)
    folder = write_peft(adapter, tmp_path / "peft", base=fresh)
    loaded = PeftModel.from_pretrained(fresh, folder)
    assert_bit_equal(loaded, folder)
    seen = {}
    with torch.no_grad():
        for key, one in (("ours", model), ("theirs", loaded)):
            seen[key] = one.eval()(pixels(name)).logits
    assert torch.allclose(seen["ours"], seen["theirs"], atol=2e-5, rtol=1e-4)
    assert_same(adapter, read_peft(folder))
    assert_same(adapter, read(folder, base=MODELS[name]()))


def assert_bit_equal(loaded, folder):
    """Every tensor of the file is in peft's model, as it is, and peft has no trained tensor besides."""
    state = {key: tensor for key, tensor in loaded.state_dict().items() if ".default" in key}
    tensors, _ = safefile.load(folder / TENSORS)
    there = {key.replace(".default", ""): tensor for key, tensor in state.items()}
    there = {key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): t for key, t in there.items()}
    assert set(there) == set(tensors)
    for key, tensor in tensors.items():
        assert torch.equal(there[key], tensor), key


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_a_pipeline_becomes_a_folder_for_each_component(tmp_path, method):
    adapter = support.adapter("sd1", method, patterns=True)
    pipeline = tiny_sd1()
    folder = export(adapter, tmp_path / "peft", "peft", base=pipeline, dtype="float32")
    assert sorted(path.name for path in folder.iterdir()) == ["text_encoder", "unet"]
    for component in ("unet", "text_encoder"):
        place = folder / component
        assert_bit_equal(PeftModel.from_pretrained(getattr(pipeline, component), place), place)
    again = read(folder, base=tiny_sd1())
    assert_same(adapter, again)
    weights = support.weights("sd1")
    before, after = deltas(adapter, weights), deltas(again, weights)
    assert all(torch.allclose(before[place], after[place], atol=1e-6) for place in before)


def test_kernels_of_convolutions_survive_without_a_base(tmp_path):
    adapter = support.adapter("sd1", "loha")
    again = read_peft(write_peft(adapter, tmp_path / "peft"))
    assert again.specs["unet"].kernels == adapter.specs["unet"].kernels


def test_the_file_within_a_folder_is_read_with_its_settings(tmp_path):
    adapter = trained(tiny_vit(), SPECS["lora"])
    folder = write_peft(adapter, tmp_path / "peft")
    assert_same(adapter, read(folder / TENSORS))


def test_heads_are_pefts_modules_to_save(tmp_path):
    model = tiny_vit()
    fresh = deepcopy(model)
    head = torch.nn.Linear(fresh.classifier.in_features, fresh.classifier.out_features)
    adapter = trained(model, SPECS["lora"], {"model.classifier": head})
    folder = write_peft(adapter, tmp_path / "peft", base=fresh)
    loaded = PeftModel.from_pretrained(fresh, folder)
    with torch.no_grad():
        assert torch.allclose(model.eval()(pixels("vit")).logits, loaded.eval()(pixels("vit")).logits, atol=1e-5)
    again = read_peft(folder)
    assert set(again.heads) == set(adapter.heads)
    assert all(torch.equal(again.heads[name], adapter.heads[name]) for name in adapter.heads)
    named = {place: tuple(sorted(names)) for place, names in adapter.metadata.head_modules.items()}
    assert again.metadata == adapter.metadata.model_copy(update={"head_modules": named})


def test_what_peft_saves_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"],
        rank_pattern={r"layers\.0\.attention\.q_proj": 2}, alpha_pattern={"layers.1.attention.v_proj": 3},
    )  # fmt: skip
    made = get_peft_model(tiny_vit(), config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    made.save_pretrained(tmp_path / "peft")
    adapter = read(tmp_path / "peft", base=tiny_vit())
    ours = tiny_vit()
    manager = manage(ours)
    manager.attach("a", adapter)
    manager.activate("a")
    with torch.no_grad():
        assert torch.allclose(ours.eval()(pixels("vit")).logits, made.eval()(pixels("vit")).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["oft", "ia3", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_proof_of_a_folder_needs_no_base(tmp_path, kind, dtype):
    file = trained(tiny_vit(), SPECS[kind]).save(tmp_path / "a.safetensors")
    proof = export_peft(file, tmp_path / "peft", dtype=dtype)
    assert (proof.ok, proof.applied) == (True, proof.expected)
    assert proof.expected > 0
    assert proof.max_abs_error < (1e-6 if dtype == "float32" else 1e-3)


@pytest.mark.parametrize("spec", [FullSpec(targets="*.q_proj"), VptSpec(tokens=2)])
def test_other_methods_are_refused_by_name(tmp_path, spec):
    adapter = trained(tiny_vit(), spec)
    with pytest.raises(AdapterError, match=rf"not '{spec.method}'.*to_lora"):
        write_peft(adapter, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_trained_words_are_refused(tmp_path):
    adapter = replace(support.adapter("sd1", "lora"), heads={"text_encoder.token.sks": torch.ones(1, 32)})
    with pytest.raises(AdapterError, match=r"trained word 'text_encoder\.token\.sks'"):
        write_peft(adapter, tmp_path / "peft")


def test_a_decomposition_that_peft_would_not_make_is_refused(tmp_path):
    adapter = trained(tiny_vit(), SPECS["lokr"])
    other = replace(adapter, specs={"model": adapter.specs["model"].model_copy(update={"factor": 2})})
    with pytest.raises(AdapterError, match="factorised in another way than peft"):
        write_peft(other, tmp_path / "peft")


def test_an_existing_folder_stays_unless_it_may_go(tmp_path):
    adapter = trained(tiny_vit(), SPECS["lora"])
    folder = write_peft(adapter, tmp_path / "peft")
    before = (folder / TENSORS).read_bytes()
    with pytest.raises(OutputError, match="exists"):
        write_peft(adapter, folder, dtype="float16")
    assert (folder / TENSORS).read_bytes() == before
    write_peft(adapter, folder, dtype="float16", overwrite=True)
    assert {tensor.dtype for tensor in safefile.load(folder / TENSORS)[0].values()} == {torch.float16}
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]


def test_a_module_that_another_ends_with_is_named_exactly(tmp_path):
    model = tiny_vit()
    adapter = trained(model, SPECS["lora"])
    folder = write_peft(adapter, tmp_path / "peft", base=tiny_vit())
    assert isinstance(json.loads((folder / CONFIG).read_text())["target_modules"], list)
    from visionpeft.files.peft_folder import _Names, _targets

    assert _targets(["fc"], _Names({}, frozenset({"fc", "deep.fc"}))) == "fc"


def spoiled(tmp_path, change_config=None, change_tensors=None):
    folder = write_peft(trained(tiny_vit(), SPECS["lora"]), tmp_path / "peft")
    if change_config:
        config = json.loads((folder / CONFIG).read_text())
        change_config(config)
        (folder / CONFIG).write_text(json.dumps(config))
    if change_tensors:
        tensors, header = safefile.load(folder / TENSORS)
        change_tensors(tensors)
        safefile.save(folder / TENSORS, tensors, header)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(peft_type="VERA"), "peft's 'VERA' is not read"),
        (lambda c: c.update(bias="all"), "trained biases"),
        (lambda c: c.update(init_lora_weights="pissa"), "first values 'pissa'"),
        (lambda c: c.update(fan_in_fan_out=True), "fan_in_fan_out"),
        (lambda c: c.update(lora_alpha=-1), "the alpha -1"),
        (lambda c: c.update(lora_alpha=float("nan")), "the alpha nan"),
        (lambda c: c.update(alpha_pattern={"(a+)+$": 3}), "regular expression"),
        (lambda c: c.update(use_dora=True), "lacks lora_magnitude_vector"),
        (lambda c: c.update(use_dora=True, use_rslora=True), "DoRA with rsLoRA"),
    ],
)
def test_settings_that_mean_something_else_are_refused(tmp_path, change, message):
    with pytest.raises(FileFormatError, match=message.replace("(", r"\(")):
        read_peft(spoiled(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"strange.lora_A.weight": torch.ones(2, 2)}), "should begin with"),
        (lambda t: t.update({f"{PREFIX}x.lora_C": torch.ones(2, 2)}), r"x\.lora_C' is no tensor of lora"),
        (lambda t: t.pop(next(name for name in t if name.endswith("lora_B.weight"))), r"lacks lora_B\.weight"),
        (lambda t: t.update({name: tensor.T for name, tensor in list(t.items())[:1]}), "do not fit"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(FileFormatError, match=message):
        read_peft(spoiled(tmp_path, None, lambda t: (change(t), t.update({k: v.contiguous() for k, v in t.items()}))))


@pytest.mark.parametrize("kind", ["OFT", "IA3"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 5), (0, 4), (2, 3, 4)])
def test_vectors_of_strange_shapes_are_refused(tmp_path, kind, shape):
    name = {"OFT": "oft_R.weight", "IA3": "ia3_l"}[kind]
    safefile.save(tmp_path / TENSORS, {f"{PREFIX}x.{name}": torch.ones(shape)}, {})
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": kind, "target_modules": ["x"], "oft_block_size": 4}))
    with pytest.raises(FileFormatError, match="none that peft writes"):
        read_peft(tmp_path)


def test_what_is_no_folder_of_pefts_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"holds neither adapter_config\.json"):
        read(tmp_path)
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileFormatError, match="missing"):
        read(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(FileFormatError, match="pickle"):
        read(tmp_path)
    (tmp_path / TENSORS).write_bytes(b"")
    (tmp_path / CONFIG).write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read(tmp_path)


def test_vllm_serves_plain_lora_of_linear_layers(tmp_path):
    folder = write_peft(trained(tiny_vit(), SPECS["lora"]), tmp_path / "lora")
    assert vllm_refusals(folder) == ()
    folder = write_peft(trained(tiny_vit(), LoraSpec(rank=24)), tmp_path / "large")
    assert vllm_refusals(folder) == ("the rank 24 needs --max-lora-rank 24",)
    assert vllm_refusals(folder, max_rank=32) == ()
    assert "does not serve dora" in vllm_refusals(write_peft(trained(tiny_vit(), SPECS["dora"]), tmp_path / "dora"))[0]
    patterned = trained(tiny_vit(), LoraSpec(rank=4, alpha_pattern={first_path(): 8.0}))
    assert "alpha_pattern" in vllm_refusals(write_peft(patterned, tmp_path / "pattern"))[0]
    unet = write_peft(support.adapter("sd1", "lora"), tmp_path / "unet") / "unet"
    assert any("convolutions" in line for line in vllm_refusals(unet))


def first_path():
    return next(iter(modules(trained(tiny_vit(), SPECS["lora"])))).removeprefix("model.")


def test_the_weights_of_the_base_are_checked(tmp_path):
    adapter = trained(tiny_vit(), SPECS["lora"])
    stray = {key.replace("layers.0", "layers.9"): tensor for key, tensor in adapter.tensors.items()}
    with pytest.raises(AdapterError, match="belongs to another base"):
        write_peft(replace(adapter, tensors=stray), tmp_path / "peft", base=tiny_vit())

"""Names of transformers 5.5 to 5.23, as listed from the real models: one canonical name whatever the version."""

import json
from pathlib import Path

import pytest
import torch

from tests.models.list_names import joined
from tests.models.test_vision_families import SOLVED, base_of, run
from tests.tiny_vision import TOWERS, available, tiny_vision
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError
from visionpeft.models.family import families
from visionpeft.models.manage import manage

LISTED = json.loads((Path(__file__).parent.parent / "golden" / "vision_modules.json").read_text())
FAMILIES = {family.name: family for family in families()}
FUSED = "mlp.weights_in"  # DINOv2's gated layers were one before 5.18 and are two since: `divided` shares them out


def canonical(name, parameters):
    family = FAMILIES[SOLVED.get(name, name.removesuffix("_two_stage"))]
    return {family.canonical("model", parameter) for parameter in parameters}


@pytest.mark.parametrize("name", LISTED)
def test_every_version_has_the_same_canonical_names(name):
    spans = LISTED[name]
    newest = canonical(name, spans[-1]["names"])
    if name != "yolos":  # which has the old names still
        assert newest == set(spans[-1]["names"])
    assert canonical(name, newest) == newest
    for span in spans[:-1]:
        found = canonical(name, span["names"])
        assert len(found) == len(set(span["names"]))
        assert all(FUSED in one or "gate_proj" in one or "up_proj" in one for one in found ^ newest), span["versions"]
        assert found == newest or name == "dinov2_swiglu"


@pytest.mark.parametrize("name", LISTED)
def test_the_installed_version_is_among_the_listed_names(name):
    if name in TOWERS or not available(name):
        pytest.skip("not in this transformers")
    mine = canonical(name, [one for one, _ in tiny_vision(name).named_parameters(remove_duplicate=False)])
    assert mine in [canonical(name, span["names"]) for span in LISTED[name]]


def test_the_list_joins_versions_that_agree(tmp_path):
    for version, names in (("1", ["a", "b"]), ("2", ["b", "a"]), ("3", ["c"])):
        (tmp_path / version).write_text(json.dumps({"version": version, "names": {"x": names}}))
    spans = joined([str(tmp_path / version) for version in "123"])
    assert [span["versions"] for span in spans["x"]] == [["1", "2"], ["3"]]


OLD = {
    "vit": [
        ("vit.layers.", "vit.encoder.layer."), ("attention.q_proj", "attention.attention.query"),
        ("attention.v_proj", "attention.attention.value"), ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"), ("attention.o_proj", "attention.output.dense"),
    ],
    "swin": [
        ("attention.q_proj", "attention.self.query"), ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
    ],
    "detr": [("_attn.o_proj", "_attn.out_proj"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")],
    "conditional_detr": [
        ("encoder_attn.q_content_proj", "ca_qcontent_proj"), ("self_attn.k_pos_proj", "sa_kpos_proj"),
        ("encoder_attn.q_pos_sine_proj", "ca_qpos_sine_proj"), ("self_attn.q_content_proj", "sa_qcontent_proj"),
    ],
    "rt_detr": [("encoder.aifi.0", "encoder.encoder.0"), ("_attn.o_proj", "_attn.out_proj"), ("mlp.fc1", "fc1")],
    "d_fine": [("mlp.layers.0", "fc1"), ("mlp.layers.1", "fc2")],
}  # fmt: skip


def as_of_old(name, text):
    for new, old in OLD[name]:
        text = text.replace(new, old)
    return text


@pytest.mark.parametrize("name", OLD)
def test_an_adapter_with_former_names_attaches_and_says_the_same(name):
    base = base_of(name)
    manager = manage(base)
    manager.add("a", LoraSpec(rank=2, targets=("attention", "mlp")))
    generator = torch.manual_seed(0)
    for parameter in manager.trainable("a")["model"]:
        parameter.data += torch.randn(parameter.shape, generator=generator)
    with torch.no_grad():
        out = run(base)
    new = manager.capture("a")
    manager.remove("a")
    paths = tuple(sorted({key.split(".lora_")[0].removeprefix("model.") for key in new.tensors}))
    pattern = {as_of_old(name, paths[0]): 2}
    spec = new.specs["model"].model_copy(
        update={"targets": tuple(as_of_old(name, path) for path in paths), "rank_pattern": pattern}
    )
    old = Adapter({"model": spec}, {as_of_old(name, key): one for key, one in new.tensors.items()}, {}, new.metadata)
    assert sum(key not in new.tensors for key in old.tensors) > 2
    manager.attach("old", old)
    with torch.no_grad():
        assert torch.allclose(run(base), out, atol=1e-5)
    now = manager.capture("old")
    assert now.tensors.keys() == new.tensors.keys()
    assert now.specs["model"].rank_pattern == {paths[0]: 2}
    manager.swap("old", old)


def test_targets_of_published_recipes_mean_what_they_did():
    manager = manage(base_of("vit"))
    assert manager.add("a", LoraSpec(targets=("query", "value"))).modules == {"model": 4}
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in manager.capture("a").tensors} == {"q_proj", "v_proj"}


def test_two_names_of_one_tensor_are_an_error():
    manager = manage(base_of("vit"))
    manager.add("a", LoraSpec(rank=2, targets="attention.q"))
    value = manager.capture("a")
    twice = dict(value.tensors)
    key = next(iter(twice))
    twice[as_of_old("vit", key)] = twice[key]
    with pytest.raises(AdapterError, match="which name the same tensor"):
        manager.attach("b", Adapter(value.specs, twice, {}, value.metadata))

"""OFT, (IA)³ and full tuning as LyCORIS files: read back exactly, biases and norms proved."""

from __future__ import annotations

import pytest
import torch

from tests.files.support import PIPELINES, pipeline, weights
from visionpeft import files, safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.spec import FullSpec, Ia3Spec, OftSpec
from visionpeft.errors import AdapterError
from visionpeft.files.bases import biases_of
from visionpeft.models.manage import manage

OFT = OftSpec(targets=("attention",), block_size=4)
NO_BIAS = ("re:attn[12]\\.to_[qkv]$",)


def trained(family, spec):
    """An adapter of this spec on the UNet, with random values."""
    manager = manage(PIPELINES[family]())
    manager.add("a", {"unet": spec})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for group in manager.trainable("a").values():
            for parameter in group:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return manager.capture("a")


def changes(value, base):
    """ΔW and Δb of every module."""
    found = dict(algebra.deltas(value, base))
    for place, parts in algebra.modules(value).items():
        bias = base.get(f"{place}.bias")
        change = None if bias is None else algebra.bias_delta(value.specs["unet"], parts, bias)
        found |= {} if change is None else {f"{place}.bias": change}
    return found


def with_biases(family):
    return {**weights(family), **{f"{p}.bias": b for p, b in biases_of(pipeline(family)).items()}}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for place, expected in one.items():
        assert torch.allclose(other[place].reshape(expected.shape), expected, atol=1e-6), place


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize(
    "spec", [OftSpec(targets=("attention",), block_size=4), Ia3Spec(targets=("attention", "conv"))]
)
def test_with_the_base_a_turned_or_scaled_weight_is_a_whole_difference(tmp_path, family, spec):
    value, base = trained(family, spec), with_biases(family)
    path = files.export(value, tmp_path / "a.safetensors", "lycoris", base=base, dtype="float32")
    assert_same(changes(value, base), changes(files.read(path), base))
    proof = files.prove(path, value, base)
    assert proof.ok, proof
    found = proof.programs["ComfyUI"]
    assert (found.biases, found.max_bias_error) == (found.expected_biases, 0)
    assert (found.biases > 0) == isinstance(spec, Ia3Spec)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_vectors_of_ia3_need_no_base_where_there_is_no_bias(tmp_path, dtype):
    inside = ("re:attn1\\.to_out\\.0$",)
    value = trained("sd1", Ia3Spec(targets=(*NO_BIAS, *inside), feedforward=inside))
    path = files.export(value, tmp_path / "a.safetensors", "lycoris", dtype=dtype)
    tensors, _ = safefile.load(path)
    assert {name.partition(".")[2] for name in tensors} == {"weight", "on_input"}
    back = files.read(path)
    assert back.specs["unet"].method == "ia3"
    one, other = (algebra.deltas(v, weights("sd1")) for v in (value, back))
    bound = 1e-6 if dtype == "float32" else 2**-10
    assert all(float((other[p] - e).norm() / e.norm()) < bound for p, e in one.items())
    manage(PIPELINES["sd1"]()).attach("back", back)
    proof = files.prove(path, value, weights("sd1"))
    assert proof.programs["AUTOMATIC1111"].ok, proof
    assert not proof.programs["ComfyUI"].ok


@pytest.mark.parametrize("spec", [OFT, Ia3Spec(targets=("attention",))])
def test_without_the_base_what_needs_it_is_refused_with_the_remedy(tmp_path, spec):
    with pytest.raises(AdapterError, match=r"base=.*to_lora"):
        files.export(trained("sd1", spec), tmp_path / "a.safetensors", "lycoris")
    assert list(tmp_path.iterdir()) == []


def test_biases_and_norms_of_full_tuning_are_proved(tmp_path):
    value = trained("sd1", FullSpec(targets=("conv_norm_out", "conv_out")))
    path = files.export(value, tmp_path / "a.safetensors", "lycoris", dtype="float32")
    found = files.prove(path, value).programs["ComfyUI"]
    assert (found.applied, found.biases, found.expected_biases, found.max_bias_error) == (2, 2, 2, 0)
    assert found.ok
    assert "2 of 2 biases, max |Δb error| ≤ 0" in str(found)
    tensors, header = safefile.load(path)
    name = next(name for name in tensors if name.endswith(".b_norm"))
    safefile.save(path, tensors | {name: tensors[name] + 0.5}, header)
    wrong = files.prove(path, value).programs["ComfyUI"]
    assert wrong.max_bias_error == pytest.approx(0.5)
    assert not wrong.ok
    assert "WRONG BIASES" in str(wrong)
    safefile.save(path, {n: t for n, t in tensors.items() if not n.endswith(".diff_b")}, header)
    assert files.prove(path, value).programs["ComfyUI"].biases == 1
    assert not files.prove(path, value).programs["AUTOMATIC1111"].ok


def test_every_program_s_version_gate_is_told(tmp_path):
    value = trained("sd1", FullSpec(targets=("conv_out",)))
    path = files.export(value, tmp_path / "a.safetensors", "lycoris", dtype="float32")
    programs = files.prove(path, value).programs
    assert all(proof.gate_passed for name, proof in programs.items() if name != "InvokeAI")
    assert not programs["InvokeAI"].gate_passed  # neither cross-attention nor text encoder
    tensors, _ = safefile.load(path)
    safefile.save(path, tensors, {"ss_base_model_version": "sdxl_base_v1-0"})
    hidden = files.prove(path, value).programs["AUTOMATIC1111"]
    assert (hidden.accepted, hidden.gate_passed) == (False, False)
    assert "version gate NOT passed: its header says sdxl" in str(hidden)

"""The proof finds what is right, and really finds what is wrong."""

from __future__ import annotations

import pytest
import torch

from tests.files.support import PIPELINES, adapter, bench, weights
from visionpeft import files, safefile
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError
from visionpeft.files.proof import difference
from visionpeft.files.readers import PROGRAMS
from visionpeft.files.readers.rules import Product, Whole
from visionpeft.models.family import Family, families

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def tampered(tmp_path, family, change, **export):
    """The proof of a kohya file after a change to its tensors or header."""
    value = adapter(family, "lora", conv=False)
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights(family), dtype="float32", **export)
    tensors, metadata = safefile.load(path)
    change(tensors, metadata)
    safefile.save(path, tensors, metadata)
    return files.prove(path, value, base=weights(family))


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kohya_files_apply_in_every_program(tmp_path, family, method, dtype):
    value = adapter(family, method)
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights(family), dtype=dtype)
    proof = files.prove(path, value, base=weights(family))
    assert set(proof.programs) == set(PROGRAMS) == set(proof.meant_for)
    assert proof.ok, str(proof)
    assert all(one.ok for one in proof.programs.values()), str(proof)
    if dtype == "float32":
        assert all(one.max_rel_error < 1e-6 for one in proof.programs.values())


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_lycoris_methods_apply_where_programs_have_them(tmp_path, method):
    value = adapter("sd1", method)
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights("sd1"))
    proof = files.prove(path, value, base=weights("sd1"))
    fine = {name for name, one in proof.programs.items() if one.ok}
    assert fine >= {"ComfyUI", "AUTOMATIC1111", "Forge"}
    assert not proof.programs["diffusers"].accepted
    assert proof.ok
    assert files.check_target(proof, "comfyui").ok
    with pytest.raises(AdapterError, match="refuses"):
        files.check_target(proof, "diffusers")
    assert not files.check_target(proof, "diffusers", anyway=True).ok
    with pytest.raises(AdapterError, match="ComfyUI"):
        files.check_target(proof, "comfyuy")


def test_the_truth_about_dora_is_told(tmp_path):
    value = adapter("sd1", "dora")
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights("sd1"))
    proof = files.prove(path, value, base=weights("sd1"))
    assert not any(one.ok for one in proof.programs.values())
    assert "WRONG VALUES" in str(proof.programs["AUTOMATIC1111"])
    other = files.export(value, tmp_path / "b.safetensors", "diffusers", base=weights("sd1"))
    assert files.prove(other, value, base=weights("sd1")).ok
    with pytest.raises(AdapterError, match="base"):
        files.prove(path, value)


def test_the_dotted_layout_is_for_diffusers_alone(tmp_path):
    value = adapter("sd1", "lora", conv=False)
    path = files.export(value, tmp_path / "a.safetensors", "diffusers", base=weights("sd1"))
    proof = files.prove(path, value, base=weights("sd1"))
    assert proof.ok
    assert proof.meant_for == ("diffusers",)
    assert [name for name, one in proof.programs.items() if one.ok] == ["diffusers"]
    assert proof.programs["ComfyUI"].ignored_keys
    assert not proof.programs["Forge"].accepted
    assert not proof.programs["InvokeAI"].accepted
    assert proof.programs["AUTOMATIC1111"].applied == 0


def test_the_proof_works_without_the_base(tmp_path):
    value = adapter("sdxl", "lora")
    path = files.export(value, tmp_path / "a.safetensors", "kohya")
    assert files.prove(path, value).ok


def test_a_misnamed_module_is_found(tmp_path):
    def change(tensors, metadata):
        for suffix in ("lora_down.weight", "lora_up.weight", "alpha"):
            tensors[f"{QUERY}x.{suffix}"] = tensors.pop(f"{QUERY}.{suffix}")

    proof = tampered(tmp_path, "sd1", change)
    assert not any(one.ok for one in proof.programs.values())
    for one in proof.programs.values():
        assert one.applied == one.expected - 1
        assert len(one.ignored_keys) == 3
    assert "keys ignored" in str(proof)


def test_two_swapped_modules_are_found_by_their_values(tmp_path):
    def change(tensors, metadata):
        key = QUERY.replace("to_q", "to_k")
        for suffix in ("lora_down.weight", "lora_up.weight"):
            one, other = f"{QUERY}.{suffix}", f"{key}.{suffix}"
            tensors[one], tensors[other] = tensors[other], tensors[one]

    proof = tampered(tmp_path, "sd1", change)
    assert not any(one.ok for one in proof.programs.values())
    assert all(one.applied == one.expected for one in proof.programs.values())


def test_dropped_alphas_are_found(tmp_path):
    def change(tensors, metadata):
        for name in [name for name in tensors if name.endswith(".alpha")]:
            del tensors[name]

    proof = tampered(tmp_path, "sd1", change)
    assert not any(one.ok for one in proof.programs.values())
    assert all(one.max_rel_error == pytest.approx(1.0, rel=1e-4) for one in proof.programs.values())


def test_one_dropped_alpha_is_found_but_not_by_diffusers_rule(tmp_path):
    proof = tampered(tmp_path, "sd1", lambda tensors, metadata: tensors.pop(f"{QUERY}.alpha"))
    wrong = {name for name, one in proof.programs.items() if not one.ok}
    assert wrong == set(PROGRAMS) - {"diffusers"}


def test_a_transposed_factor_is_found(tmp_path):
    def change(tensors, metadata):
        up, down = f"{QUERY}.lora_up.weight", f"{QUERY}.lora_down.weight"
        tensors[up], tensors[down] = tensors[down].T.contiguous(), tensors[up].T.contiguous()

    proof = tampered(tmp_path, "sd1", change)
    assert not any(one.ok for one in proof.programs.values())


def test_forge_refuses_more_than_twelve_strange_keys(tmp_path):
    def strange(count):
        return lambda tensors, metadata: tensors.update(
            {f"lora_unet_x_{n}.alpha": torch.tensor(1.0) for n in range(count)}
        )

    assert tampered(tmp_path, "sd1", strange(12)).programs["Forge"].accepted
    (tmp_path / "a.safetensors").unlink()
    refused = tampered(tmp_path, "sd1", strange(13)).programs["Forge"]
    assert not refused.accepted
    assert "mismatch" in str(refused)


def test_automatic1111_hides_sdxl_files_without_their_version(tmp_path):
    proof = tampered(tmp_path, "sdxl", lambda tensors, metadata: metadata.pop("ss_base_model_version"))
    assert "hidden" in str(proof.programs["AUTOMATIC1111"])
    (tmp_path / "a.safetensors").unlink()
    assert tampered(tmp_path, "sdxl", lambda tensors, metadata: metadata.clear()).programs["AUTOMATIC1111"].accepted


def test_invokeai_refuses_sdxl_names_of_both_kinds(tmp_path):
    def change(tensors, metadata):
        original = "lora_unet_middle_block_1_proj_in"
        for suffix in ("lora_down.weight", "lora_up.weight", "alpha"):
            tensors[f"lora_unet_mid_block_attentions_0_proj_in.{suffix}"] = tensors.pop(f"{original}.{suffix}")

    proof = tampered(tmp_path, "sdxl", change)
    assert not proof.programs["InvokeAI"].accepted
    assert proof.programs["ComfyUI"].ok
    assert proof.programs["diffusers"].ignored_keys


def test_a_bundled_word_makes_diffusers_refuse(tmp_path):
    proof = tampered(tmp_path, "sd1", lambda tensors, metadata: tensors.update({"bundle_emb.a.b": torch.zeros(1)}))
    assert not proof.programs["diffusers"].accepted


def products(outs, ins, noise):
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(outs, 4, generator=generator), torch.randn(4, ins, generator=generator)
    other = torch.randn(up.shape, generator=generator) * noise + up
    error = 0.5 * up.double() @ down.double() - 0.5 * other.double() @ (down.half().double())
    truth = float(error.abs().max()), float(error.norm() / (0.5 * up.double() @ down.double()).norm())
    return Product(up, down, 0.5), Product(other, down.half(), 0.5), truth


@pytest.mark.parametrize("noise", [1e-4, 1.0])
def test_differences_of_small_products_are_exact(noise):
    one, other, (largest, relative) = products(70, 50, noise)
    assert difference(one, other) == pytest.approx((largest, relative), rel=1e-3)
    assert difference(Whole(0.5 * one.up @ one.down), other) == pytest.approx((largest, relative), rel=1e-2)


@pytest.mark.parametrize("noise", [1e-4, 1.0])
def test_differences_of_large_products_are_bounded_closely(noise):
    one, other, (largest, relative) = products(1100, 900, noise)
    bound, exact = difference(one, other)
    assert largest <= bound <= 3 * largest
    assert exact == pytest.approx(relative, rel=1e-6)


def test_products_of_other_ranks_are_compared_too():
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(1000, 4, generator=generator), torch.randn(4, 900, generator=generator)
    same = Product(torch.cat([up, up], 1), torch.cat([down, down]) / 2, 1.0)
    assert difference(Product(up, down, 1.0), same)[1] < 1e-12
    assert difference(Product(up, down, 1.0), Product(up[:, :3], down[:3], 1.0))[1] > 0.1


# ---------------------------------------------------------------------- the published models' sizes


def full_size(family):
    """The weights of the published model without values, and a rank-2 adapter on kohya's targets."""
    script = bench()
    with torch.device("meta"):
        models = {"unet": script.build_unet(family, tiny=False)} | script.build_text(family, tiny=False)
    known: Family = next(found for found in families() if found.name == family)
    shapes, tensors, generator = {}, {}, torch.Generator().manual_seed(3)
    for component, model in models.items():
        layers = known.layers(component, model)
        modules = {path: model.get_submodule(actual) for path, actual in layers.items()}
        shapes |= {f"{component}.{path}": module.weight for path, module in modules.items()}
        for path in known.resolve(component, modules, "kohya"):
            weight = modules[path].weight
            tensors[f"{component}.{path}.lora_A.weight"] = torch.randn(2, *weight.shape[1:], generator=generator) * 0.1
            up = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=generator)
            tensors[f"{component}.{path}.lora_B.weight"] = up * 0.1
    specs = {component: LoraSpec(rank=2, alpha=1.0, targets="kohya") for component in models}
    return shapes, Adapter(specs, tensors, {}, AdapterMetadata(family=family))


@pytest.mark.parametrize(("family", "count"), [("sd1", 264), ("sdxl", 986)])
def test_every_module_of_the_published_models_applies_in_every_program(tmp_path, family, count):
    shapes, value = full_size(family)
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=shapes)
    proof = files.prove(path, value, base=shapes)
    assert proof.ok, str(proof)
    for name, one in proof.programs.items():
        assert (one.applied, one.expected) == (count, count), name
    other = files.export(value, tmp_path / "b.safetensors", "diffusers", base=shapes)
    assert files.prove(other, value, base=shapes).programs["diffusers"].ok
    if family == "sd1":  # what was seen in the programs themselves
        seen = files.prove(other, value, base=shapes).programs["ComfyUI"]
        assert (seen.applied, len(seen.ignored_keys)) == (136, 256)

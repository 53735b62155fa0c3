"""Files of other programs are read as what they are: closed forms, made files, and two real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visionpeft import files, safefile
from visionpeft.adapters import algebra
from visionpeft.errors import FileFormatError

REAL = next((p for up in Path(__file__).parents if (p := up / "shared" / "data" / "loras").is_dir()), Path("loras"))
QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PLACE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OLD = PLACE.replace(".to_q", ".processor.to_q_lora")
NATIVE = PLACE.replace("unet.mid_block.attentions.0", "diffusion_model.middle_block.1")
FUSED = ("lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv")
GENERATOR = torch.Generator().manual_seed(3)


def rand(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def written(tmp_path, tensors, metadata=None):
    path = tmp_path / "a.safetensors"
    safefile.save(path, tensors, metadata or {})
    return path


def delta_of(path, base=None, place=PLACE):
    return algebra.deltas(files.read(path, base))[place]


@pytest.mark.parametrize(("name", "tokens"), [("analog_svd_rank4", 0), ("lora_disney", 2)])
def test_real_files_are_inspected_and_read(name, tokens):
    path = REAL / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    report = files.inspect(path)
    assert (report["format"], report["family"]) == ("cloneofsimo", "sd1")
    assert {name: part["modules"] for name, part in report["components"].items()} == {"unet": 144, "text_encoder": 48}
    value = files.read(path)
    assert len(value.heads) == tokens
    tensors, _ = safefile.load(path)
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    expected = tensors["unet:6:up"].float() @ tensors["unet:6:down"].float()
    assert torch.allclose(algebra.deltas(value)[place], expected, atol=1e-6)
    assert expected.shape == (320, 768)


@pytest.mark.parametrize(
    "name",
    [
        f"{PLACE}.lora_A.weight|{PLACE}.lora_B.weight",
        f"{PLACE}.lora.down.weight|{PLACE}.lora.up.weight",
        f"{OLD}.down.weight|{OLD}.up.weight",
        f"base_model.model.{PLACE[5:]}.lora_A.weight|base_model.model.{PLACE[5:]}.lora_B.weight",
        f"{NATIVE}.lora_A.weight|{NATIVE}.lora_B.weight",
    ],
)
def test_every_naming_is_the_same_module(tmp_path, name):
    down, up = rand(2, 8), rand(8, 2)
    low, high = name.split("|")
    assert torch.allclose(delta_of(written(tmp_path, {low: down, high: up})), up @ down)


def test_whole_differences_and_norms_are_full_tuning(tmp_path):
    diff, norm = rand(8, 8), rand(8)
    tensors = {f"{QUERY}.diff": diff, f"{QUERY}.diff_b": norm}
    tensors |= {"lora_unet_conv_norm_out.w_norm": norm, "lora_unet_conv_norm_out.b_norm": 2 * norm}
    value = files.read(written(tmp_path, tensors, {"ss_base_model_version": "sd_v1"}))
    assert value.specs["unet"].method == "full"
    assert torch.equal(value.tensors[f"{PLACE}.weight.diff"], diff)
    assert torch.equal(value.tensors["unet.conv_norm_out.bias.diff"], 2 * norm)
    again = files.export(value, tmp_path / "b.safetensors", "lycoris", dtype="float32")
    back, _ = safefile.load(again)
    assert {name: tensor.tolist() for name, tensor in back.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert files.prove(again, value).programs["ComfyUI"].max_rel_error == 0


def test_mixed_methods_become_whole_differences(tmp_path):
    down, up, diff = rand(2, 8), rand(8, 2), rand(8, 8)
    key = QUERY.replace("to_q", "to_k")
    tensors = {f"{QUERY}.lora_down.weight": down, f"{QUERY}.lora_up.weight": up, f"{key}.diff": diff}
    value = algebra.deltas(files.read(written(tmp_path, tensors | {f"{QUERY}.alpha": torch.tensor(1.0)})))
    assert torch.allclose(value[PLACE], 0.5 * up @ down)
    assert torch.equal(value[PLACE.replace("to_q", "to_k")], diff)


def test_what_needs_the_base_says_so_and_is_read_with_it(tmp_path):
    weight, blocks = rand(8, 6), rand(2, 4, 4)
    path = written(tmp_path, {f"{QUERY}.oft_blocks": blocks, f"{QUERY}.alpha": torch.tensor(0.0)})
    with pytest.raises(FileFormatError, match="base="):
        files.read(path)
    assert any("base" in note for note in files.inspect(path)["unusual"])
    skew = (blocks - blocks.mT).double()
    rotation = torch.block_diag(*((torch.eye(4) + q) @ (torch.eye(4) - q).inverse() for q in skew))
    expected = rotation.T @ weight.double() - weight.double()
    assert torch.allclose(delta_of(path, {PLACE: weight}).double(), expected, atol=1e-5)


def test_boft_keeps_lengths_and_ia3_and_dora_by_input_are_their_formulas(tmp_path):
    weight, vector = rand(8, 6), rand(6)
    path = written(tmp_path, {f"{QUERY}.oft_blocks": rand(2, 2, 4, 4)})
    turned = weight + delta_of(path, {PLACE: weight})
    assert torch.allclose(turned.norm(dim=0), weight.norm(dim=0), rtol=1e-4)
    path = written(tmp_path, {f"{QUERY}.weight": vector, f"{QUERY}.on_input": torch.tensor(1)})
    assert torch.allclose(delta_of(path, {PLACE: weight}), weight * vector)
    down, up, magnitude = rand(2, 6), rand(8, 2), rand(1, 6).abs()
    tensors = {f"{QUERY}.lora_down.weight": down, f"{QUERY}.lora_up.weight": up, f"{QUERY}.dora_scale": magnitude}
    whole = weight + up @ down
    expected = whole * magnitude / whole.norm(dim=0, keepdim=True) - weight
    assert torch.allclose(delta_of(written(tmp_path, tensors), {PLACE: weight}), expected, atol=1e-5)


@pytest.mark.parametrize(
    "prefix", ["lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"]
)
def test_a_fused_flux_module_is_three_of_diffusers(tmp_path, prefix):
    down, up = rand(2, 6), rand(18, 2)
    names = (".lora_down.weight", ".lora_up.weight") if "_unet_" in prefix else (".lora_A.weight", ".lora_B.weight")
    path = written(tmp_path, {prefix + names[0]: down, prefix + names[1]: up})
    found = algebra.deltas(files.read(path))
    places = [f"transformer.transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    assert torch.allclose(torch.cat([found[place] for place in places]), up @ down)
    assert files.inspect(path)["family"] == "flux"


def test_bundled_words_are_heads(tmp_path):
    tensors = {f"{QUERY}.lora_down.weight": rand(2, 8), f"{QUERY}.lora_up.weight": rand(8, 2)}
    path = written(tmp_path, tensors | {"bundle_emb.cat.clip_l": rand(2, 8), "bundle_emb.cat.clip_g": rand(2, 9)})
    assert set(files.read(path).heads) == {"text_encoder.token.cat", "text_encoder_2.token.cat"}


def test_inspection_names_what_is_unusual(tmp_path):
    tensors = {f"{QUERY}.lora_down.weight": rand(2, 8), f"{QUERY}.alpha": torch.tensor(1.0)}
    tensors |= {"lora_unet_conv_in.lora_down.weight": rand(4, 4, 3, 3) * float("nan")}
    tensors |= {"lora_unet_conv_in.lora_up.weight": torch.zeros(8, 4, 1, 1), "lora_unet_conv_in.x": rand(1)}
    text = "\n".join(files.inspect(written(tmp_path, tensors))["unusual"])
    for part in ("lacks lora_up", "alpha is not the rank", "mixed", "not numbers", "all zero", "unknown suffix"):
        assert part in text, part


FACTORS = {
    "lora": ("lora_down.weight", "lora_up.weight"),
    "mid": ("lora_down.weight", "lora_mid.weight", "lora_up.weight"),
    "dora": ("lora_down.weight", "lora_up.weight", "dora_scale"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "cores": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "oft": ("oft_blocks", "rescale", "alpha"),
    "full": ("diff", "diff_b"),
    "ia3": ("weight", "on_input"),
}


@pytest.mark.parametrize("kind", FACTORS)
def test_factors_of_strange_shapes_are_no_crash(tmp_path, kind):
    """Every factor in turn has every strange shape: the answer is an adapter or one clear error."""
    refused: list[str] = []
    for strange in FACTORS[kind]:
        for shape in ((), (0,), (4,), (0, 4), (4, 0), (4, 4, 3), (2, 2, 2, 2, 2)):
            tensors = {f"{QUERY}.{name}": torch.ones(4, 4) for name in FACTORS[kind]}
            path = written(tmp_path, tensors | {f"{QUERY}.{strange}": torch.ones(shape)}, {"ss_v2": "False"})
            files.inspect(path)
            for base in (None, {PLACE: torch.ones(4, 4)}):
                try:
                    files.read(path, base)
                except FileFormatError as error:
                    refused.append(str(error))
    assert all(str(tmp_path) in said for said in refused)
    assert refused or kind == "full"


def test_long_numbers_in_names_are_no_crash(tmp_path):
    name = f"lora_unet_input_blocks_{'9' * 5000}_0_x"
    path = written(tmp_path, {f"{name}.lora_down.weight": rand(1, 2), f"{name}.lora_up.weight": rand(2, 1)})
    with pytest.raises(FileFormatError):
        files.read(path)
    assert files.inspect(path)["unusual"]

"""What programs make of files that this one does not write: OFT, BOFT, Tucker cores, original names, DoRA, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.files.support import adapter, weights
from visionpeft import files, safefile
from visionpeft.adapters import algebra
from visionpeft.adapters.blend import blend
from visionpeft.cli import run
from visionpeft.errors import FileFormatError
from visionpeft.files.readers import PROGRAMS, File, Model

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PLACE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY, KEY_PLACE = QUERY.replace("attn1_to_q", "attn2_to_k"), PLACE.replace("attn1.to_q", "attn2.to_k")
CONV, CONV_PLACE = "lora_unet_mid_block_resnets_0_conv1", "unet.mid_block.resnets.0.conv1"
SD1 = {"ss_base_model_version": "sd_v1"}
GENERATOR = torch.Generator().manual_seed(5)


def rand(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def written(tmp_path, tensors, metadata=None):
    safefile.save(tmp_path / "a.safetensors", tensors, SD1 if metadata is None else metadata)
    return tmp_path / "a.safetensors"


def readings(tensors, base, family="sd1", metadata=None):
    """Every program's reading of tensors over a base of these weights."""
    shapes = {place: (len(weight), weight[0].numel()) for place, weight in base.items()}
    plain = frozenset(() if family == "sdxl" else {0})
    model = Model(family, shapes, base, 2, plain)
    return {name: read(File(tensors, SD1 if metadata is None else metadata), model) for name, read in PROGRAMS.items()}


def rotation(blocks, limit):
    """Cayley's map of every block as one matrix over the outputs, in float64; the skew parts are shortened together."""
    skew = (blocks - blocks.transpose(-1, -2)).double()
    skew = skew * min(1.0, limit / float(skew.norm())) if limit else skew
    eye = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def butterfly(blocks, limit):
    """BOFT's matrix over the outputs: stage i turns blocks of outputs that lie 2^i half blocks apart."""
    count, side = blocks.shape[1:3]
    size = count * side
    total = torch.eye(size, dtype=torch.float64)
    for stage, turned in enumerate(rotation(blocks, limit)):
        apart = 2**stage * side // 2
        gather = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            pair, rest = divmod(row, 2 * apart)
            half, inner = divmod(rest, apart)
            gather[pair * 2 * apart + 2 * inner + half, row] = 1
        total = gather.T @ torch.block_diag(*turned) @ gather @ total
    return total


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("stages", [0, 3])
def test_oft_and_boft_are_lycoris_definition(tmp_path, stages, alpha, rescaled):
    weight, blocks = rand(32, 10), 0.3 * rand(*((stages, 8, 4, 4) if stages else (8, 4, 4)))
    tensors = {f"{QUERY}.oft_blocks": blocks, f"{QUERY}.alpha": torch.tensor(alpha)}
    factor = torch.ones(32, 1)
    if rescaled:
        factor = tensors[f"{QUERY}.rescale"] = 1 + 0.1 * rand(32, 1)

    def expected(limit, factor):
        turned = butterfly(blocks, limit) if stages else torch.block_diag(*rotation(blocks, limit)).T
        return factor.double() * (turned @ weight.double()) - weight.double()

    path, base = written(tmp_path, tensors), {PLACE: weight}
    read = algebra.deltas(files.read(path, base))[PLACE]
    assert torch.allclose(read.double(), expected(32 * alpha, factor), atol=1e-5)
    found = readings(tensors, base)
    assert torch.allclose(found["AUTOMATIC1111"].changes[PLACE].delta.double(), expected(32 * alpha, factor), atol=1e-5)
    own = expected(
        alpha, factor if stages else torch.ones(32, 1)
    )  # its limit is of all outputs, and OFT's rescale lost
    assert torch.allclose(found["ComfyUI"].changes[PLACE].delta.double(), own, atol=1e-5)
    assert not found["Forge"].changes
    assert not found["InvokeAI"].accepted
    assert files.inspect(path)["components"]["unet"]["method"] == ("boft" if stages else "oft")


def glora(layout, weight, rank=2):
    """Tensors of GLoRA in a layout, and what it makes of a layer's inputs, from its definition: W(A x) + B x."""
    inputs, kernel = weight.shape[1], weight.shape[2:]
    ones = (1,) * len(kernel)
    within, back = rand(rank, inputs, *ones), rand(inputs, rank, *ones)
    low, high = rand(rank, inputs, *kernel), rand(len(weight), rank, *ones)
    names = ("a1", "a2", "b1", "b2") if layout == "old" else ("a2", "a1", "b2", "b1")
    tensors = {f"{QUERY}.{n}.weight": t for n, t in zip(names, (within, back, low, high), strict=True)}

    def added(x):
        layer = torch.nn.functional.conv2d if kernel else torch.nn.functional.linear
        w, a, b, c, d = (t.double() for t in (weight, within, back, low, high))
        return layer(layer(layer(x, a), b), w) + layer(layer(x, c), d)

    return tensors, added


@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize(
    ("layout", "shape"),
    [("new", (8, 6)), ("new", (6, 6)), ("new", (8, 6, 3, 3)), ("new", (8, 6, 1, 1)), ("old", (8, 6)), ("old", (6, 6)),
     ("old", (8, 6, 1, 1))],
)  # fmt: skip
def test_glora_is_its_definition_in_both_layouts(tmp_path, layout, shape, alpha):
    weight = rand(*shape)
    tensors, added = glora(layout, weight)
    tensors |= {} if alpha is None else {f"{QUERY}.alpha": torch.tensor(alpha)}
    path, base = written(tmp_path, tensors), {PLACE: weight}
    x = rand(2, 6, *([5, 5] if len(shape) > 2 else [])).double()
    layer, scale = (torch.nn.functional.conv2d if len(shape) > 2 else torch.nn.functional.linear), (alpha or 2) / 2

    def same(delta, scale):
        return torch.allclose(layer(x, delta.double().reshape(shape)), scale * added(x), atol=1e-4)

    assert same(algebra.deltas(files.read(path, base))[PLACE], scale)
    found = readings(tensors, base)
    assert same(found["ComfyUI"].changes[PLACE].delta, scale)
    assert (PLACE in found["Forge"].changes) == (layout == "old")  # it knows the older layout alone
    assert (PLACE in found["AUTOMATIC1111"].changes) == (layout == "old" and len(shape) == 2 and alpha is not None)
    if PLACE in found["AUTOMATIC1111"].changes:
        assert same(found["AUTOMATIC1111"].changes[PLACE].delta, 1.0)  # whatever alpha says
    facts = files.inspect(path)
    assert facts["components"]["unet"]["method"] == "glora"
    assert facts["programs"]["ComfyUI"] == "1 of 1 modules apply"
    with pytest.raises(FileFormatError, match=r"glora.*base="):
        files.read(path)
    with pytest.raises(FileFormatError, match="another base"):
        files.read(path, {PLACE: rand(9, 5)})


def test_boft_without_an_alpha_fails_in_comfyui():
    found = readings({f"{QUERY}.oft_blocks": rand(1, 2, 4, 4)}, {PLACE: rand(8, 4)})["ComfyUI"]
    assert not found.changes
    assert "BOFT without an alpha fails" in found.notes[0]


def test_a_tucker_core_applies_where_the_program_knows_it(tmp_path):
    down, core, up = rand(2, 6, 1, 1), rand(2, 2, 3, 3), rand(8, 2, 1, 1)
    tensors = {f"{CONV}.lora_down.weight": down, f"{CONV}.lora_mid.weight": core, f"{CONV}.lora_up.weight": up}
    keys = {f"{KEY}.lora_down.weight": rand(2, 768), f"{KEY}.lora_up.weight": rand(8, 2)}
    exact = torch.einsum("or,rskl,si->oikl", up.flatten(1), core, down.flatten(1)).flatten(1)
    found = readings(tensors | keys, {CONV_PLACE: rand(8, 6, 3, 3), KEY_PLACE: rand(8, 768)})
    for name in ("ComfyUI", "AUTOMATIC1111", "Forge", "InvokeAI"):
        change = found[name].changes[CONV_PLACE]
        assert torch.allclose(change.scale * change.up @ change.down, exact, atol=1e-5), name
        assert not found[name].ignored, name
    assert not found["diffusers"].accepted
    programs = files.inspect(written(tmp_path, tensors | keys))["programs"]
    assert programs["ComfyUI"] == "2 of 2 modules apply"


@pytest.mark.parametrize("decomposed", [False, True])
def test_lokr_over_a_convolution_s_core(tmp_path, decomposed):
    small = {"lokr_w1_a": rand(4, 2), "lokr_w1_b": rand(2, 2)} if decomposed else {"lokr_w1": rand(4, 2)}
    large = {"lokr_t2": rand(2, 2, 3, 3), "lokr_w2_a": rand(2, 2), "lokr_w2_b": rand(2, 3)}
    tensors = {f"{CONV}.{name}": tensor for name, tensor in (small | large).items()}
    path = written(tmp_path, tensors | {f"{CONV}.alpha": torch.tensor(1.0)})
    first = small["lokr_w1_a"] @ small["lokr_w1_b"] if decomposed else small["lokr_w1"]
    second = torch.einsum("rskl,ro,si->oikl", large["lokr_t2"], large["lokr_w2_a"], large["lokr_w2_b"])
    exact = 0.5 * torch.einsum("ab,cdkl->acbdkl", first, second).reshape(8, 6, 3, 3)
    value = files.read(path)
    assert torch.allclose(algebra.deltas(value)[CONV_PLACE], exact, atol=1e-5)
    both = blend({"a": (value, 1.0), "b": (value, 1.0)}, "svd", 8)
    assert torch.allclose(algebra.deltas(both)[CONV_PLACE], 2 * exact, atol=1e-4)
    for name, reading in readings(safefile.load(path)[0], {CONV_PLACE: rand(8, 6, 3, 3)}).items():
        if name in ("ComfyUI", "AUTOMATIC1111", "Forge"):
            assert torch.allclose(reading.changes[CONV_PLACE].delta, exact.flatten(1), atol=1e-5), name


def test_names_of_the_original_code_with_their_dots(tmp_path):
    front = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    place = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{front}.lora_A.weight": rand(2, 2048), f"{front}.lora_B.weight": rand(8, 2)}
    found = readings(tensors, {place: rand(8, 2048)}, "sdxl", {})
    assert {name for name, reading in found.items() if place in reading.changes} == {"ComfyUI", "Forge"}
    assert files.inspect(written(tmp_path, tensors, {}))["programs"]["Forge"] == "1 of 1 modules apply"


def test_invokeai_reads_whole_differences_norms_and_vectors():
    norm = "unet.mid_block.attentions.0.norm"
    base = {KEY_PLACE: rand(8, 768), norm: rand(8), PLACE: rand(8, 8)}
    tensors = {f"{KEY}.diff": rand(8, 768), f"{KEY}.diff_b": rand(8)}
    tensors |= {"lora_unet_mid_block_attentions_0_norm.w_norm": rand(8)}
    tensors |= {f"{QUERY}.weight": rand(8), f"{QUERY}.on_input": torch.tensor(False)}
    found = readings(tensors, base)["InvokeAI"]
    assert (found.accepted, found.passed, found.ignored) == (True, True, [])
    assert torch.equal(found.changes[KEY_PLACE].delta, tensors[f"{KEY}.diff"])
    assert torch.equal(found.biases[KEY_PLACE], tensors[f"{KEY}.diff_b"])
    assert torch.equal(found.changes[PLACE].delta, base[PLACE] * tensors[f"{QUERY}.weight"][:, None])
    assert norm in found.changes
    inputs = tensors | {f"{QUERY}.on_input": torch.tensor(True)}
    change = readings(inputs, base)["InvokeAI"].changes[PLACE].delta
    assert torch.equal(change, base[PLACE] * tensors[f"{QUERY}.weight"])


def test_the_width_of_the_time_embedding_passes_for_sdxl_in_invokeai():
    name, place = "lora_unet_down_blocks_3_resnets_0_time_emb_proj", "unet.down_blocks.3.resnets.0.time_emb_proj"
    tensors = {f"{name}.lora_down.weight": rand(2, 1280), f"{name}.lora_up.weight": rand(8, 2)}
    found = readings(tensors, {place: rand(8, 1280)})["InvokeAI"]
    assert (found.accepted, found.passed) == (False, False)
    assert "taken for a LoRA of sdxl" in found.notes[0]


@pytest.mark.parametrize(("axis", "shape"), [("output", (8, 1)), ("input", (1, 768))])
def test_inspect_tells_what_programs_make_of_dora_without_the_base(tmp_path, axis, shape):
    tensors = {f"{KEY}.lora_down.weight": rand(2, 768), f"{KEY}.lora_up.weight": rand(8, 2)}
    told = files.inspect(written(tmp_path, tensors | {f"{KEY}.dora_scale": rand(*shape).abs()}))
    programs = told["programs"]
    assert all(programs[name].startswith("1 of 1 modules apply") for name in PROGRAMS)
    assert ("lengths of W's rows" in programs["ComfyUI"]) == (axis == "output")
    for name in ("AUTOMATIC1111", "InvokeAI"):
        assert ("wrong weights" in programs[name]) == (axis == "output"), name
    assert told["blocks"]["unet.mid_block"]["norm"] is None  # it is a function of the base


@pytest.mark.parametrize(
    ("name", "ends", "family", "reads"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", ("lora_down", "lora_up"), "flux", {"ComfyUI", "Forge", "diffusers"}),
        ("transformer.single_transformer_blocks.0.proj_mlp", ("lora_A", "lora_B"), "flux", {"ComfyUI", "diffusers"}),
        ("double_blocks.0.img_attn.proj", ("lora_A", "lora_B"), "flux", {"ComfyUI", "InvokeAI"}),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", ("lora_down", "lora_up"), "sd3", {"ComfyUI"}),
        ("transformer.transformer_blocks.0.attn.to_q", ("lora_A", "lora_B"), "sd3", {"ComfyUI", "diffusers"}),
        ("diffusion_model.joint_blocks.0.x_block.mlp.fc1", ("lora_A", "lora_B"), "sd3", {"ComfyUI", "Forge"}),
    ],
)
def test_flux_and_sd3_in_all_three_namings(tmp_path, name, ends, family, reads):
    tensors = {f"{name}.{ends[0]}.weight": rand(2, 6), f"{name}.{ends[1]}.weight": rand(18, 2)}
    told = files.inspect(written(tmp_path, tensors, {}))
    assert told["family"] == family
    assert {program for program, line in told["programs"].items() if line.startswith("reads this layout")} >= reads
    assert all("reads" in line or "read" in line for line in told["programs"].values())
    places = algebra.deltas(files.read(tmp_path / "a.safetensors"))
    assert all(place.startswith("transformer.") for place in places)
    whole = tensors[f"{name}.{ends[1]}.weight"] @ tensors[f"{name}.{ends[0]}.weight"]
    assert torch.allclose(torch.cat([places[place] for place in in_rows(places)]), whole, atol=1e-5)


def in_rows(places):
    """Places of a fused module in the order of its rows."""
    return sorted(
        places, key=lambda place: next((n for n, e in enumerate(("to_q", "to_k", "to_v")) if place.endswith(e)), 0)
    )


def test_folders_of_peft_are_inspected_read_and_converted(tmp_path, capsys):
    value = adapter("sd1", "rslora", patterns=True)
    folder = files.export(value, tmp_path / "robot", "peft", dtype="float32")
    for path in (folder, folder / "unet", folder / "unet" / "adapter_model.safetensors"):
        assert run(["inspect", str(path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["format"], told["family"]) == ("peft", "sd1")
        assert told["components"]["unet"]["method"] == "rslora"
        assert told["programs"]["peft"] == "reads it"
        assert "kohya" in told["programs"]["ComfyUI"]
        assert any(name.endswith("use_rslora") and text == "True" for name, text in told["metadata"].items())
    assert run(["inspect", str(folder)]) == 0
    assert "text_encoder" in capsys.readouterr().out
    target = tmp_path / "kohya.safetensors"
    assert run(["convert", str(folder), "--format", "kohya", "--output", str(target), "--dtype", "float32"]) == 0
    again = algebra.deltas(files.read(target))
    for place, delta in algebra.deltas(value).items():
        assert torch.allclose(again[place], delta, atol=1e-6), place


def test_folders_of_diffusers_are_inspected_and_read(tmp_path, capsys):
    folder = tmp_path / "robot"
    folder.mkdir()
    value = adapter("sd1", "lora")
    files.export(value, folder / "pytorch_lora_weights.safetensors", "diffusers", base=weights("sd1"), dtype="float32")
    assert run(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "diffusers"
    found = algebra.deltas(files.read(folder))
    assert all(torch.allclose(found[place], delta) for place, delta in algebra.deltas(value).items())


def test_other_folders_say_what_they_are(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    written(tmp_path, {f"{KEY}.diff": rand(8, 8)})
    for look in (files.inspect, files.read):
        with pytest.raises(FileFormatError, match="whole pipeline"):
            look(tmp_path / "pipeline")
        with pytest.raises(FileFormatError, match=r"adapter_config.json.*a\.safetensors"):
            look(tmp_path)


def test_a_folder_of_a_method_that_is_not_read_is_inspected(tmp_path):
    folder = Path(tmp_path)
    safefile.save(folder / "adapter_model.safetensors", {"base_model.model.x.boft_R": rand(1, 2, 4, 4)}, {})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BOFT", "boft_block_size": 4}))
    told = files.inspect(folder)
    assert (told["format"], told["components"]) == ("peft", {"boft": {"method": "BOFT", "modules": 0, "ranks": {}}})
    assert told["metadata"]["boft_block_size"] == "4"
    assert "peft's 'BOFT' is not read" in told["unusual"][0]
    with pytest.raises(FileFormatError, match="BOFT"):
        files.read(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match=r"adapter_config\.json"):
        files.inspect(folder)

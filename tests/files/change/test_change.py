"""Resize, extract, split, convert and rename, against dense float64 arithmetic."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.files.change.support import KINDS, adapter, folder, pipeline, single
from visionpeft import safefile
from visionpeft.adapters.algebra import deltas, modules
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.fit import check_patterns
from visionpeft.errors import AdapterError, BaseModelError, FileFormatError, OutputError
from visionpeft.files import read
from visionpeft.files.change import convertible, extract, merge, open_checkpoint, rename, resize, split, write
from visionpeft.files.change.extract import factors
from visionpeft.models.manage import manage

REAL = [folder / "shared" / "data" / "loras" for folder in Path(__file__).parents]


def weights(kind: str):
    manager = manage(pipeline(kind))
    places = [place for method in ("lora",) for place in modules(adapter(kind, method))]
    return {place: value.clone() for place, value in manager.base_weights(places).items() if ".bias" not in place}


def dense(one: Adapter, base=None):
    return {place: value.double().flatten(1) for place, value in deltas(one, base).items()}


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
@pytest.mark.parametrize("size", [{"rank": 5}, {"energy": 0.8}, {"rank": 3, "energy": 0.99}, {"energy": 1.0}])
def test_factors_are_the_truncated_svd(shape, size):
    matrix = torch.randn(shape, generator=torch.manual_seed(1), dtype=torch.float64)
    down, up, kept = factors(matrix, size.get("rank"), size.get("energy"))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    share = s.square().cumsum(0) / s.square().sum()
    keep = min(size.get("rank", 99), int((share < size.get("energy", 1.0) - 1e-12).sum()) + 1, len(s))
    assert len(down) == keep
    assert torch.allclose(up @ down, (u[:, :keep] * s[:keep]) @ vt[:keep], atol=1e-10)
    assert kept == pytest.approx(float(share[keep - 1]), abs=1e-12)


@pytest.mark.parametrize("method", ["lora", "rslora", "loha", "lokr", "dora", "oft"])
def test_a_resize_is_the_best_of_its_rank(method):
    one, base = adapter("sd1", method), weights("sd1")
    found = resize(one, rank=2, base=base)
    before, after = dense(one, base), dense(found.adapter)
    total = kept = 0.0
    for place, exact in before.items():
        u, s, vt = torch.linalg.svd(exact, full_matrices=False)
        best = (u[:, :2] * s[:2]) @ vt[:2]
        assert float((after[place] - best).norm() / exact.norm()) < 1e-5, place
        share = float(s[:2].square().sum() / s.square().sum())
        assert found.energies[place][1] / found.energies[place][0] == pytest.approx(share, rel=1e-4)
        assert found.ranks[place][1] == min(2, len(s))
        total, kept = total + float(s.square().sum()), kept + float(s[:2].square().sum())
    assert found.kept == pytest.approx(kept / total, rel=1e-4)
    assert found.worst[1] <= found.kept


def test_a_resize_by_energy_keeps_at_least_that_and_asks_for_one_or_the_other():
    found = resize(adapter("sd1", "lora"), energy=0.9)
    assert found.worst[1] >= 0.9 - 1e-6
    assert found.kept < 1
    with pytest.raises(AdapterError, match="how much to keep"):
        resize(adapter("sd1", "lora"))
    with pytest.raises(AdapterError, match="give base="):
        resize(adapter("sd1", "dora"), rank=2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_merged_is_extracted_from_either_layout(kind, tmp_path):
    one = adapter(kind, "lora")
    file, other = single(kind, tmp_path / "base.safetensors"), folder(kind, tmp_path / "base")
    tuned = merge(open_checkpoint(file), {"a": (one, 1.0)}, tmp_path / "tuned.safetensors").path
    expected = dense(one)
    for base in (file, other):
        found = extract(open_checkpoint(tuned), open_checkpoint(base), rank=3)
        assert found.left_out == {}
        got = dense(found.adapter)
        assert got.keys() == expected.keys()
        for place, exact in expected.items():
            assert float((got[place] - exact).norm() / exact.norm()) < 1e-4, place
        assert found.kept > 1 - 1e-6
        origin = open_checkpoint(base)
        done = write(found.adapter, tmp_path / f"{base.name}.out.safetensors", base=origin, dtype="float32")
        assert done.ok, str(done.proof)


def test_what_cannot_be_extracted_is_said_with_its_share(tmp_path):
    file = single("sd1", tmp_path / "base.safetensors")
    state = safetensors.torch.load_file(file)
    generator = torch.manual_seed(0)
    for key, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim:
            state[key] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    safetensors.torch.save_file(state, tmp_path / "tuned.safetensors")
    found = extract(open_checkpoint(tmp_path / "tuned.safetensors"), open_checkpoint(file), energy=1.0)
    assert set(found.left_out) == {"bias", "norm", "embedding", "autoencoder"}
    tuned, base = open_checkpoint(tmp_path / "tuned.safetensors"), open_checkpoint(file)
    squares = {name: float((tuned.value(name) - base.value(name)).double().square().sum()) for name in base.spots}
    vae = sum(value for name, value in squares.items() if name.startswith("vae."))
    assert found.share("autoencoder") == pytest.approx(vae / sum(squares.values()), rel=1e-4)
    assert found.energy == pytest.approx(sum(squares.values()), rel=1e-6)
    with pytest.raises(AdapterError, match="nothing to extract"):
        extract(base, base, rank=2)
    with pytest.raises(BaseModelError, match="no difference"):
        extract(open_checkpoint(single("sd2", tmp_path / "sd2.safetensors")), base, rank=2)


@pytest.mark.parametrize("method", ["lora", "loha", "lokr", "ia3", "full"])
@pytest.mark.parametrize("by", ["component", "block"])
def test_parts_add_up_and_attach(method, by):
    one = adapter("sd1", method)
    one = replace(one, heads={"text_encoder.token.sks": torch.ones(2, 64)})
    parts = split(one, by)
    assert {"unet", "text_encoder"} <= set(parts)
    assert ("unet.mid_block" in parts) == (by == "block")
    together = {}
    for part in parts.values():
        assert not together.keys() & part.tensors.keys()
        together |= part.tensors
        for component, spec in part.specs.items():
            check_patterns(component, spec, [place.partition(".")[2] for place in modules(part)])
    assert together == one.tensors
    assert [name for name, part in parts.items() if part.heads] == ["text_encoder"]
    manager = manage(pipeline("sd1"))
    for name, part in parts.items():
        if method != "full":
            manager.attach(name.replace(".", "_"), replace(part, heads={}))
    if manager.names:
        manager.remove(*manager.names)


def test_a_split_of_one_part_or_by_a_strange_way_is_refused():
    with pytest.raises(AdapterError, match="Did you mean 'block'"):
        split(adapter("sd1", "lora"), "blocks")
    only = split(adapter("sd1", "lora"))["text_encoder"]
    with pytest.raises(AdapterError, match="nothing to split"):
        split(only)


def test_what_a_format_cannot_express_becomes_lora_on_request(tmp_path):
    one, base = adapter("sd1", "oft"), weights("sd1")
    with pytest.raises(AdapterError, match="give --rank or --energy"):
        convertible(one, "kohya")
    found, cut = convertible(one, "kohya", energy=0.999, base=base)
    assert cut.kept > 0.999 - 1e-6
    done = write(found, tmp_path / "x.safetensors", "kohya", dtype="float32", programs=("ComfyUI",))
    assert done.ok
    again = dense(read(done.path))
    for place, exact in dense(found).items():
        assert float((again[place] - exact).norm() / exact.norm()) < 1e-6


def test_rank_or_energy_makes_lora_of_what_the_format_has_but_programs_read_otherwise():
    one, base = adapter("sd1", "dora"), weights("sd1")
    assert convertible(one, "kohya") == (one, None)
    found, cut = convertible(one, "kohya", energy=1.0, base=base)
    assert {spec.method for spec in found.specs.values()} == {"lora"}
    assert cut.kept == pytest.approx(1.0)
    plain = adapter("sd1", "lora")
    assert convertible(plain, "kohya", rank=1) == (plain, None)


def test_what_a_named_program_would_half_read_is_not_written(tmp_path):
    one = adapter("sd1", "lora")
    with pytest.raises(AdapterError, match=r"was not written.*ComfyUI"):
        write(one, tmp_path / "x.safetensors", "diffusers", programs=("ComfyUI",))
    assert list(tmp_path.iterdir()) == []
    done = write(one, tmp_path / "x.safetensors", "diffusers", programs=("ComfyUI",), anyway=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"] == [path.name for path in done.files]
    with pytest.raises(OutputError, match="exists"):
        write(one, done.path)
    with pytest.raises(FileFormatError, match="Did you mean 'ComfyUI'"):
        write(one, tmp_path / "y.safetensors", programs=("ComfyU",))
    done = write(one, tmp_path / "z.safetensors", "diffusers", programs=("DIFFUSERS",))
    assert (done.ok, done.proof.meant_for) == (True, ("diffusers",))


@pytest.mark.parametrize("format", ["native", "kohya", "diffusers"])
def test_renaming_touches_no_tensor(format, tmp_path):
    file = write(adapter("sd1", "lora"), tmp_path / "x.safetensors", format).path
    before, old = safefile.load(file)[0], safefile.read_header(file).metadata
    with pytest.raises(OutputError, match="exists"):
        rename(file, triggers=["sks"])
    said = rename(file, triggers=["sks robot"], entries={"title": "Robot", "ss_output_name": "robot"}, overwrite=True)
    assert safefile.read_header(file).metadata == said
    after = safefile.load(file)[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert read(file).metadata.trigger_words == ("sks robot",)
    if format == "native":
        assert json.loads(said["visionpeft"])["metadata"]["extra"]["modelspec.title"] == "Robot"
        return
    assert said["modelspec.title"] == "Robot"
    assert said["modelspec.hash_sha256"] == old["modelspec.hash_sha256"]
    rename(file, drop=["title"], triggers=[], overwrite=True)
    assert read(file).metadata.trigger_words == ()
    for entries, says in (
        ({"modelspec.hash_sha256": "0"}, "follows from the tensors"),
        ({"titel": "x"}, "Did you mean 'title'"),
    ):
        with pytest.raises(FileFormatError, match=says):
            rename(file, entries=entries, overwrite=True)
    with pytest.raises(FileFormatError, match="has no entry"):
        rename(file, drop=["title"], overwrite=True)


@pytest.mark.parametrize("name", ["lora_disney", "analog_svd_rank4"])
def test_real_files_are_resized_and_proved(name, tmp_path):
    file = next((file for place in REAL if (file := place / f"{name}.safetensors").is_file()), None)
    if file is None:
        pytest.skip("the two public LoRA files are not here")
    try:
        one = read(file)
    except FileFormatError as error:
        pytest.skip(f"not read by this version: {error}")
    done = write(one, tmp_path / "kohya.safetensors", "kohya", dtype="float32")
    assert done.ok, str(done.proof)
    found = resize(one, rank=2)
    assert 0 < found.worst[1] <= found.kept < 1
    assert write(found.adapter, tmp_path / "small.safetensors", "kohya").ok

"""What is written comes back as the same ΔW, for every method and format that can hold it."""

from __future__ import annotations

import hashlib

import pytest
import torch

from tests.files.support import PIPELINES, SPECS, adapter, pipeline, weights
from visionpeft import files, safefile
from visionpeft.adapters import algebra
from visionpeft.errors import AdapterError, FileFormatError, OutputError
from visionpeft.files import FORMATS
from visionpeft.models.manage import manage

CASES = [
    (family, method, layout)
    for family in PIPELINES
    for method in SPECS
    for layout, row in FORMATS.items()
    if not row.methods or method in row.methods
]


def deltas(value, family):
    return algebra.deltas(value, weights(family))


def assert_same(one, other, family, tolerance):
    first, second = deltas(one, family), deltas(other, family)
    assert first.keys() == second.keys()
    for place, expected in first.items():
        error = (second[place].reshape(expected.shape) - expected).norm() / expected.norm()
        assert error < tolerance, place


@pytest.mark.parametrize(("family", "method", "layout"), CASES)
def test_the_same_change_comes_back(tmp_path, family, method, layout):
    value = adapter(family, method)
    path = files.export(value, tmp_path / "a.safetensors", layout, base=weights(family), dtype="float32")
    found = files.read(path)
    assert found.metadata.family == family or layout == "diffusers"
    assert_same(value, found, family, 2e-6)


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_ranks_and_alphas_of_single_modules_come_back(tmp_path, family, layout):
    value = adapter(family, "lora", patterns=True)
    path = files.export(value, tmp_path / "a.safetensors", layout, base=weights(family), dtype="float32")
    found = files.read(path)
    assert found.specs["unet"].rank_pattern == value.specs["unet"].rank_pattern
    assert_same(value, found, family, 2e-6)
    assert files.prove(path, value, base=weights(family)).ok


@pytest.mark.parametrize("method", SPECS)
def test_what_was_read_can_be_attached(tmp_path, method):
    value = adapter("sd1", method)
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights("sd1"), dtype="float32")
    manager = manage(PIPELINES["sd1"]())
    manager.attach("b", files.read(path))
    assert_same(value, manager.capture("b"), "sd1", 2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_lose_no_more_than_rounding_the_factors(tmp_path, dtype):
    value = adapter("sdxl", "lora")
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights("sdxl"), dtype=dtype)
    bound = 2 * 2.0 ** (-11 if dtype == "float16" else -8)
    assert_same(value, files.read(path), "sdxl", bound)


@pytest.mark.parametrize("layout", FORMATS)
def test_the_same_export_gives_the_same_bytes(tmp_path, layout):
    value = adapter("sdxl", "lora")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.export(value, tmp_path / folder / "a.safetensors", layout, base=pipeline("sdxl"))
    one, two = ((tmp_path / folder / "a.safetensors").read_bytes() for folder in ("one", "two"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()


def test_kohya_names_of_a_foreign_file_in_diffusers_naming_are_read(tmp_path):
    value = adapter("sdxl", "lora")
    path = files.export(value, tmp_path / "a.safetensors", "kohya", base=weights("sdxl"), dtype="float32")
    tensors, metadata = safefile.load(path)
    places = {place.replace(".", "_").replace("unet_", "lora_unet_", 1): place for place in algebra.modules(value)}
    renamed = {name: tensor for name, tensor in tensors.items() if not name.startswith("lora_unet_")}
    for module, place in places.items():
        if place.startswith("unet."):
            renamed[f"{module}.lora_down.weight"] = value.tensors[f"{place}.lora_A.weight"]
            renamed[f"{module}.lora_up.weight"] = value.tensors[f"{place}.lora_B.weight"]
            renamed[f"{module}.alpha"] = torch.tensor(2.0)
    safefile.save(tmp_path / "b.safetensors", renamed, metadata)
    assert_same(value, files.read(tmp_path / "b.safetensors"), "sdxl", 2e-6)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("method", ["oft", "ia3"])
def test_a_method_without_a_place_is_refused_with_the_remedy(tmp_path, layout, method):
    from visionpeft.adapters.spec import read_spec

    manager = manage(PIPELINES["sd1"]())
    manager.add("a", read_spec({"method": method, "targets": "attention"}))
    with pytest.raises(AdapterError, match=r"to_lora"):
        files.export(manager.capture("a"), tmp_path / "a.safetensors", layout)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_allowed(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        files.export(adapter("sd1", "lora"), path, "kohya")
    assert path.read_bytes() == b"mine"
    files.export(adapter("sd1", "lora"), path, "kohya", overwrite=True)
    assert files.read(path).specs["unet"].method == "lora"


def test_another_base_is_noticed_by_its_shapes(tmp_path):
    with pytest.raises(AdapterError, match="another base"):
        files.export(adapter("sd1", "lora"), tmp_path / "a.safetensors", "kohya", base=weights("sd2"))
    assert list(tmp_path.iterdir()) == []


def test_values_too_large_for_float16_are_refused(tmp_path):
    value = adapter("sd1", "lora")
    huge = {name: tensor * 1e7 for name, tensor in value.tensors.items()}
    with pytest.raises(FileFormatError, match="bfloat16"):
        files.export(type(value)(value.specs, huge, {}, value.metadata), tmp_path / "a.safetensors", "kohya")
    files.export(
        type(value)(value.specs, huge, {}, value.metadata), tmp_path / "a.safetensors", "kohya", dtype="bfloat16"
    )


def test_values_that_are_no_numbers_are_refused(tmp_path):
    value = adapter("sd1", "lora")
    broken = {name: tensor * float("nan") for name, tensor in value.tensors.items()}
    with pytest.raises(FileFormatError, match="not numbers"):
        files.export(type(value)(value.specs, broken, {}, value.metadata), tmp_path / "a.safetensors", "kohya")


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(FileFormatError, match="kohya"):
        files.export(adapter("sd1", "lora"), tmp_path / "a.safetensors", "kohia")
    with pytest.raises(FileFormatError, match="author"):
        files.export(adapter("sd1", "lora"), tmp_path / "a.safetensors", "kohya", metadata={"autor": "me"})


def test_a_file_of_no_known_kind_says_what_was_seen(tmp_path):
    path = tmp_path / "a.safetensors"
    safefile.save(path, {"something.else": torch.zeros(2)}, {})
    with pytest.raises(FileFormatError, match=r"something\.else"):
        files.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lora_unet_conv_in.lora_up.weight"), "lacks lora_up"),
        (lambda t: t.update({"lora_unet_conv_in.strange": torch.zeros(1)}), "strange"),
        (lambda t: t.update({"other_model.emb": torch.zeros(1)}), "does not belong"),
        (lambda t: t.update({"lora_unet_nowhere.lora_up.weight": torch.zeros(1)}), "nowhere"),
        (lambda t: t.update({"lora_unet_conv_in.alpha": torch.tensor(float("nan"))}), "alpha"),
        (lambda t: t.update({"lora_unet_conv_in.lora_up.weight": torch.zeros(8, 9, 1, 1)}), "do not fit"),
    ],
)
def test_a_damaged_kohya_file_is_one_clear_error(tmp_path, change, message):
    path = files.export(adapter("sd1", "lora"), tmp_path / "a.safetensors", "kohya")
    tensors, metadata = safefile.load(path)
    change(tensors)
    safefile.save(path, tensors, metadata)
    with pytest.raises((FileFormatError, AdapterError), match=message):
        files.read(path)


def test_a_tucker_core_is_folded_into_plain_lora(tmp_path):
    generator = torch.Generator().manual_seed(0)
    down, core = torch.randn(4, 4, 1, 1, generator=generator), torch.randn(4, 4, 3, 3, generator=generator)
    up = torch.randn(32, 4, 1, 1, generator=generator)
    name = "lora_unet_conv_in"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": core, f"{name}.lora_up.weight": up}
    safefile.save(tmp_path / "a.safetensors", tensors | {f"{name}.alpha": torch.tensor(2.0)}, {})
    found = algebra.deltas(files.read(tmp_path / "a.safetensors"))["unet.conv_in"]
    expected = 0.5 * torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], core, down[:, :, 0, 0])
    assert torch.allclose(found, expected, atol=1e-5)


def test_inspect_says_what_a_file_is(tmp_path):
    path = files.export(adapter("sdxl", "lora"), tmp_path / "a.safetensors", "kohya", base=weights("sdxl"))
    report = files.inspect(path)
    assert report["format"] == "kohya"
    assert report["family"] == "sdxl"
    assert report["components"]["unet"]["ranks"] == {"4": len(deltas(adapter("sdxl", "lora"), "sdxl")) - 24}
    assert report["components"]["text_encoder_2"] == {"method": "lora", "modules": 12, "ranks": {"4": 12}}


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "loha", "lokr", "full", "oft", "ia3"])
def test_random_round_trips_of_the_benchmark_are_exact(tmp_path, method):
    import importlib.util
    import random
    from pathlib import Path

    script = Path(__file__).parents[2] / "scripts" / "bench" / "round_trips.py"
    spec = importlib.util.spec_from_file_location("round_trips", script)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    for number, family in enumerate(("sd1", "sdxl")):
        value, base = bench.random_adapter(method, family, random.Random(number))
        for layout in (layout for layout, methods in bench.FORMATS.items() if method in methods):
            path = files.export(value, tmp_path / f"{layout}{family}.safetensors", layout, base=base, dtype="float32")
            assert bench.worst_error(value, files.read(path, base), base) < 1e-6, layout
            path = files.export(value, path, layout, base=base, dtype="float16", overwrite=True)
            error = bench.worst_error(value, files.read(path, base), base)
            assert error <= 1.001 * bench.rounded_error(value, base, method, layout), layout

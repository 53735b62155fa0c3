"""Merging into checkpoints: equal to `manager.merge`, in both layouts, for every method."""

import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.adapters.cases import SCALED
from tests.files.change.support import adapter, folder, merged_by_manager, pipeline, single
from visionpeft import safefile
from visionpeft.adapters.spec import ProbeSpec
from visionpeft.errors import AdapterError, BaseModelError, FileFormatError, OutputError
from visionpeft.files.change import merge, open_checkpoint
from visionpeft.models.base import load_base

PER_PART = {"*": 0.5, "unet.up_blocks": -1.0, "text_encoder": 0.0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    made = {}
    for kind in ("sd1", "sdxl"):
        made[kind, "file"] = single(kind, place / f"{kind}.safetensors", metadata={"modelspec.hash_sha256": "0x1"})
        made[kind, "folder"] = folder(kind, place / kind)
    return made


@pytest.mark.parametrize("layout", ["file", "folder"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("method", SCALED)
def test_a_merge_is_what_the_manager_merges(bases, tmp_path, method, kind, layout):
    weights = {"a": (adapter(kind, method), PER_PART), "b": (adapter(kind, "lora", 1), 0.3)}
    if method == "full":
        weights.pop("b")
    base = open_checkpoint(bases[kind, layout])
    done = merge(base, weights, tmp_path / ("out.safetensors" if layout == "file" else "out"))
    expected, after = merged_by_manager(kind, weights), open_checkpoint(done.path)
    compared = 0
    for name, value in expected.items():
        if name in after.spots:
            assert torch.allclose(after.value(name), value, rtol=1e-6, atol=1e-6), name
            compared += 1
    assert compared >= len(base.spots) - sum(name.startswith("vae.") for name in base.spots) - 1
    changed = [name for name in base.spots if not torch.equal(after.value(name), base.value(name))]
    assert changed
    assert not any(name.startswith(("vae.", "text_encoder.")) for name in changed if "b" not in weights)
    assert done.rounding.share < 1e-5  # float32


def test_what_is_not_changed_stays_bit_for_bit_and_the_file_loads(bases, tmp_path):
    weights = {"a": (adapter("sd1", "lora"), {"*": 0.0, "unet.mid_block": 1.0})}
    source = bases["sd1", "file"]
    done = merge(open_checkpoint(source), weights, tmp_path / "out.safetensors")
    before, after = safetensors.torch.load_file(source), safetensors.torch.load_file(done.path)
    assert before.keys() == after.keys()
    differing = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(differing) == done.tensors > 0
    assert all(key.startswith("model.diffusion_model.middle_block.") for key in differing)
    header = safefile.read_header(done.path).metadata
    assert header == {"modelspec.merged_from": "sd1.safetensors, a"}  # the hash was of the old weights
    pipeline("sd1").tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert load_base(done.path).family.name == "sd1"


def test_a_folder_is_copied_whole_and_loads(bases, tmp_path):
    source = bases["sdxl", "folder"]
    extra = source / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    extra.write_bytes((source / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    done = merge(open_checkpoint(source), {"a": (adapter("sdxl", "lora"), 1.0)}, tmp_path / "out")
    extra.unlink()
    assert done.left_out == ("unet/diffusion_pytorch_model.fp16.safetensors",)
    names = {str(p.relative_to(source)) for p in source.rglob("*")}
    assert {str(p.relative_to(done.path)) for p in done.path.rglob("*")} == names
    assert load_base(done.path).family.name == "sdxl"
    assert list(tmp_path.iterdir()) == [done.path]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_stated_as_it_is(bases, tmp_path, dtype):
    weights = {"a": (adapter("sd1", "lora"), 1.0)}
    base = open_checkpoint(bases["sd1", "file"])
    done = merge(base, weights, tmp_path / "out.safetensors", dtype=dtype)
    exact = merge(base, weights, tmp_path / "exact.safetensors", dtype="float32")
    first, second = open_checkpoint(done.path), open_checkpoint(exact.path)
    error = change = 0.0
    for name in base.spots:
        after, value = first.value(name), second.value(name)
        assert after.dtype == getattr(torch, dtype)
        assert torch.equal(after, value.to(after.dtype))
        if not torch.equal(value, base.value(name)):
            error += float((after.double() - value.double()).square().sum())
            change += float((value.double() - base.value(name).double()).square().sum())
    assert done.rounding.share == pytest.approx((error / change) ** 0.5, rel=1e-4)
    assert done.rounding.worst_share >= done.rounding.share > (1e-4 if dtype == "float16" else 1e-3)
    assert exact.rounding.share < 1e-5


def test_sharded_folders_and_the_embedded_base_are_read(tmp_path):
    base = open_checkpoint("visionpeft/emoji-sd")
    loaded = load_base("visionpeft/emoji-sd")
    for key, value in list(loaded.unet.state_dict().items())[::40]:
        assert torch.equal(base.value(f"unet.{key}").float(), value)
    assert len(base.headers) > 3


FAULTS = {
    "family": (lambda a: a, "sdxl", AdapterError, "was made for the family 'sd1'"),
    "word": (lambda a: _with(a, heads={"text_encoder.token.sks": torch.ones(1, 9)}), "sd1", AdapterError, "cannot"),
    "method": (lambda a: _with(a, specs={"unet": ProbeSpec(targets=())}), "sd1", AdapterError, "changes no weights"),
    "place": (lambda a: _renamed(a, "mid_block", "midblock"), "sd1", AdapterError, "Did you mean 'unet.mid_block"),
    "shape": (lambda a: _cut(a), "sd1", AdapterError, "belongs to another base"),
}  # fmt: skip


def _with(a, **changes):
    from dataclasses import replace

    return replace(a, **changes)


def _renamed(a, old, new):
    return _with(a, tensors={key.replace(old, new): value for key, value in a.tensors.items()})


def _cut(a):
    return _with(a, tensors={k: v[:, :5] if k.endswith("to_q.lora_A.weight") else v for k, v in a.tensors.items()})


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_belong_is_refused_and_nothing_is_left(bases, tmp_path, fault):
    change, kind, error, says = FAULTS[fault]
    bad = change(adapter("sd1", "lora"))
    if fault in ("family", "place"):
        bad = _with(bad, metadata=bad.metadata.model_copy(update={"family": "sd1"}))
    with pytest.raises(error, match=says):
        merge(open_checkpoint(bases[kind, "folder"]), {"a": (bad, 1.0)}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_unless_told(bases, tmp_path):
    base, weights = open_checkpoint(bases["sd1", "file"]), {"a": (adapter("sd1", "lora"), 1.0)}
    target = tmp_path / "out.safetensors"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        merge(base, weights, target)
    assert target.read_text() == "mine"
    merge(base, weights, target, overwrite=True)
    assert open_checkpoint(target).family == "sd1"
    with pytest.raises(OutputError, match="is the base itself"):
        merge(base, weights, base.path, overwrite=True)
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        merge(base, weights, tmp_path / "out")
    with pytest.raises(FileFormatError, match="Did you mean 'bfloat16'"):
        merge(base, weights, tmp_path / "x.safetensors", dtype="bfloat")
    old = tmp_path / "folder"
    (old / "keep").mkdir(parents=True)
    merge(open_checkpoint(bases["sd1", "folder"]), weights, old, overwrite=True)
    assert not (old / "keep").exists()
    assert (old / "model_index.json").exists()


def test_a_full_disk_leaves_what_was_there(bases, tmp_path, monkeypatch):
    old = tmp_path / "folder"
    (old / "keep").mkdir(parents=True)

    def full(path, pieces):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safefile, "_write_part", full)
    weights = {"a": (adapter("sd1", "lora"), 1.0)}
    with pytest.raises(OutputError, match="is full"):
        merge(open_checkpoint(bases["sd1", "folder"]), weights, old, overwrite=True)
    with pytest.raises(OutputError, match="is full"):
        merge(open_checkpoint(bases["sd1", "file"]), weights, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == [old]
    assert list(old.iterdir()) == [old / "keep"]


def test_bad_checkpoints_say_what_is_wrong(tmp_path):
    with pytest.raises(BaseModelError, match="Did you mean 'visionpeft/emoji-sd'"):
        open_checkpoint("visionpeft/emojisd")
    with pytest.raises(BaseModelError, match="no UNet"):
        open_checkpoint(tmp_path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(BaseModelError, match=r"no \.safetensors there"):
        open_checkpoint(tmp_path)
    index = tmp_path / "unet" / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(BaseModelError, match="it is damaged"):
        open_checkpoint(tmp_path)
    index.unlink()
    for name in "ab":
        safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "unet" / f"{name}.safetensors")
    with pytest.raises(BaseModelError, match="leave the one"):
        open_checkpoint(tmp_path)
    assert Path(tmp_path / "unet" / "a.safetensors").exists()

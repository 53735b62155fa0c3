"""The native file: equal bytes for equal adapters, and nothing that a file could do to its reader."""

import errno
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.adapters.cases import same
from visionpeft import safefile
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import LoraSpec, OftSpec
from visionpeft.errors import FileFormatError, OutputError


def adapter(seed=0):
    generator = torch.manual_seed(seed)
    tensors = {f"unet.b.{n}": torch.randn(2, 3, generator=generator) for n in ("lora_B.weight", "lora_A.weight")}
    heads = {"text_encoder.token.<robot>": torch.randn(1, 4, generator=generator).half()}
    about = AdapterMetadata(family="sd1", base="x/y", trigger_words=("<robot>",), extra={"é": "日本"})
    specs = {"unet": LoraSpec(rank=2, targets=("a", "b")), "text_encoder": OftSpec()}
    return Adapter(specs, tensors, heads, about)


def test_a_file_gives_the_same_adapter_and_the_same_bytes(tmp_path):
    first = adapter()
    one, two = first.save(tmp_path / "one.safetensors"), adapter().save(tmp_path / "two.safetensors")
    assert one.read_bytes() == two.read_bytes()
    again = Adapter.load(one)
    assert same(again, first)
    assert again.heads["text_encoder.token.<robot>"].dtype == torch.float16
    assert again.save(tmp_path / "three.safetensors").read_bytes() == one.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.safetensors", "three.safetensors", "two.safetensors"]


def test_the_file_is_plain_safetensors_with_readable_metadata(tmp_path):
    path = adapter().save(tmp_path / "a.safetensors")
    with safetensors.safe_open(str(path), "pt") as opened:
        assert json.loads(opened.metadata()["visionpeft"])["specs"]["unet"]["rank"] == 2
        assert "unet.b.lora_A.weight" in opened.keys()  # noqa: SIM118


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, cut):
    whole = adapter().save(tmp_path / "a.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(whole[:cut])
    with pytest.raises(FileFormatError, match=r"bad\.safetensors is truncated"):
        Adapter.load(bad)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_named_and_never_loaded(tmp_path, how, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"x": Bomb()}, path)
    with pytest.raises(FileFormatError, match="Pickles can run programs and are never opened"):
        Adapter.load(path)
    assert not Path("exploded").exists()


def test_a_missing_file_names_the_nearest(tmp_path):
    adapter().save(tmp_path / "robot.safetensors")
    with pytest.raises(FileFormatError, match=r"there is no file .*\. Did you mean 'robot.safetensors'\?"):
        Adapter.load(tmp_path / "robt.safetensors")


HEADERS = {
    "no json": "{",
    "no specs": json.dumps({"metadata": {}}),
    "specs no table": json.dumps({"specs": [], "metadata": {}}),
    "unknown method": json.dumps({"specs": {"unet": {"method": "magic"}}, "metadata": {}}),
    "unknown key": json.dumps({"specs": {}, "metadata": {"evil": 1}}),
    "deep": "[" * 100000,
}


@pytest.mark.parametrize("fault", sorted(HEADERS))
def test_a_damaged_header_is_one_clear_line(tmp_path, fault):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"unet.b.lora_A.weight": torch.zeros(1)}, path, {"visionpeft": HEADERS[fault]})
    with pytest.raises(FileFormatError) as caught:
        Adapter.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_foreign_files_and_stray_tensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FileFormatError, match=r"not a visionpeft adapter; .*visionpeft\.read"):
        Adapter.load(path)
    stray = Adapter({}, {"unet.b.lora_A.weight": torch.zeros(1, 1)})
    with pytest.raises(FileFormatError, match="belongs to none of the components"):
        Adapter.load(stray.save(path))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = adapter(0).save(tmp_path / "a.safetensors")
    old = path.read_bytes()

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safefile.os, "fsync", full)
    with pytest.raises(OutputError, match=r"disk .* is full"):
        adapter(1).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match=r"there is no folder .*nowhere"):
        adapter().save(tmp_path / "nowhere" / "a.safetensors")

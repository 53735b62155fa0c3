"""Hostile files are one clear error; written files appear whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visionpeft import safefile
from visionpeft.errors import FileFormatError, OutputError

TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
]  # fmt: skip
SMALL = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor(2.0).half(), "c": torch.zeros(0, 4)}
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def blob(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(tmp_path, content, match=None):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (safefile.read_header, safefile.load):
        with pytest.raises(FileFormatError, match=match) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert "x.safetensors" in str(caught.value)


def test_bytes_are_those_of_the_reference_library():
    tensors = {f"{n}.{t}": torch.ones(n, 2).to(t) for n in (1, 3) for t in TYPES} | {"s": torch.tensor(1.0)}
    assert b"".join(safefile.chunks(tensors, {"k": 'é"\n'})) == safetensors.torch.save(tensors, {"k": 'é"\n'})


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "a.safetensors"
    safefile.save(path, SMALL, {"k": "v"})
    tensors, metadata = safefile.load(path)
    assert metadata == {"k": "v"}
    assert tensors.keys() == SMALL.keys()
    for name, tensor in SMALL.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert safetensors.torch.load_file(path).keys() == SMALL.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


HOSTILE = {
    "overlap": (blob({"a": entry(offsets=(0, 4)), "b": entry(offsets=(0, 4))}, bytes(8)), "overlap"),
    "gap": (blob({"a": entry(offsets=(4, 8))}, bytes(8)), "gap"),
    "left over": (blob({"a": entry()}, bytes(8)), "after the last"),
    "truncated data": (blob({"a": entry()}, bytes(3)), "truncated"),
    "truncated header": (blob({"a": entry()}, bytes(4))[:20], "truncated"),
    "huge header": ((2**62).to_bytes(8, "little") + b"{" + bytes(20), "no header"),
    "empty": (b"", "truncated"),
    "unknown dtype": (blob({"a": entry("F33")}, bytes(4)), "dtype"),
    "negative": (blob({"a": entry(shape=(-1,))}, bytes(4)), "shape"),
    "bool for a number": (blob({"a": entry(shape=(True,))}, bytes(4)), "shape"),
    "overflow": (blob({"a": entry(shape=(2**62, 2**62))}, bytes(4)), "does not fill"),
    "many dimensions": (blob({"a": entry(shape=(1,) * 17)}, bytes(4)), "shape"),
    "backwards": (blob({"a": entry(offsets=(4, 0))}, bytes(4)), "does not fill"),
    "extra key": (blob({"a": entry() | {"x": 1}}, bytes(4)), "exactly"),
    "no table": (blob({"a": [1]}, bytes(4)), "exactly"),
    "metadata of numbers": (blob({"__metadata__": {"a": 1}}), "__metadata__"),
    "duplicate": (blob(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)), "twice"),
    "nested": (blob(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested"),
    "no JSON": (blob(b'{"a"' + b" " * 20), "damaged"),
    "no UTF-8": (blob(b'{"\xff\xfe": 1}'), "damaged"),
    "lone surrogate": (blob(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", bytes(4)), "no valid text"),
    "pickle": (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    "web page": (b"<!DOCTYPE html><html></html>" + bytes(20), "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
    "text": (b"hello there, this is no model at all", "not a safetensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_clear_error(tmp_path, name):
    refused(tmp_path, *HOSTILE[name])


def test_a_torch_save_file_is_recognised_and_never_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.safetensors", "w") as archive:
        archive.writestr("data.pkl", b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(tmp_path, (tmp_path / "x.safetensors").read_bytes(), "pickle")


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "robot.safetensors").touch()
    with pytest.raises(FileFormatError, match=r"robot\.safetensors"):
        safefile.load(tmp_path / "robto.safetensors")
    with pytest.raises(FileFormatError):
        safefile.load(tmp_path)


def test_a_header_of_128_bytes_is_no_pickle(tmp_path):
    path = tmp_path / "a.safetensors"
    raw = json.dumps({"a": entry()}).encode().ljust(128)
    path.write_bytes(blob(raw, bytes(4)))
    assert path.read_bytes()[0] == 0x80
    assert safefile.load(path)[0]["a"].item() == 0


@RELAXED
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    try:
        safefile.load(path)
    except FileFormatError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(safefile.BITS)) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    }
)


@RELAXED
@given(st.dictionaries(st.text(max_size=6), ENTRY | JSON, max_size=4), st.binary(max_size=40))
def test_any_header_is_read_as_the_reference_library_does_or_refused(tmp_path, header, data):
    path = tmp_path / "x"
    path.write_bytes(blob(header, data))
    try:
        tensors, _ = safefile.load(path)
    except FileFormatError:
        return
    reference = safetensors.torch.load_file(path)
    assert tensors.keys() == reference.keys()
    assert all(tensors[name].shape == reference[name].shape for name in tensors)


@RELAXED
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000))
def test_flipped_and_cut_files_are_read_or_refused(tmp_path, place, value, cut):
    content = bytearray(b"".join(safefile.chunks(SMALL, {"k": "v"})))
    content[place % len(content)] = value
    path = tmp_path / "x"
    path.write_bytes(bytes(content[: len(content) - cut % 40]))
    try:
        safefile.load(path)
    except FileFormatError:
        return


# ---------------------------------------------------------------------- writing

FULL_DISK = """
import resource, sys
from visionpeft import safefile
from visionpeft.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    safefile.write_atomically(sys.argv[1], (bytes(1000) for _ in range(100)))
except OutputError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are POSIX")
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_half_made(tmp_path, there):
    path = tmp_path / "a.safetensors"
    if there:
        safefile.save(path, SMALL, {})
    before = path.read_bytes() if there else None
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "full" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == (["a.safetensors"] if there else [])
    assert not there or path.read_bytes() == before


def test_a_failure_while_the_bytes_come_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def pieces():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safefile.write_atomically(path, pieces())
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        safefile.save(tmp_path / "nowhere" / "a.safetensors", SMALL, {})


def test_a_killed_writer_leaves_no_whole_looking_file(tmp_path):
    code = "import os,sys,itertools\nfrom visionpeft import safefile\n"
    code += "def p():\n yield b'x'*10\n os.kill(os.getpid(), 9)\nsafefile.write_atomically(sys.argv[1], p())\n"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False, cwd=Path(__file__).parents[1])
    assert not (tmp_path / "a").exists()


NAMES = st.sampled_from(["lora_unet_conv_in.lora_up.weight", "lora_unet_conv_in.alpha", "unet.conv_in.lora_A.weight"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@RELAXED
@given(st.dictionaries(NAMES | st.text(max_size=12), JUNK | st.just(entry()), max_size=4), st.binary(max_size=16))
def test_hostile_headers_never_crash_reading_or_inspection(tmp_path, header, data):
    from visionpeft import files
    from visionpeft.errors import VisionPeftError

    path = tmp_path / "x.safetensors"
    path.write_bytes(blob(json.dumps(header).encode("utf-8", "surrogatepass"), data))
    for look in (files.read, files.inspect):
        with suppress(VisionPeftError):
            look(path)

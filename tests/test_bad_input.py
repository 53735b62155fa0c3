"""Bad input at the command line: status 2, one clear line that names thing and remedy, nothing half-made."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_sd1, tiny_sd2
from visionpeft.adapters.spec import LoraSpec
from visionpeft.cli import run
from visionpeft.models.base import load_base
from visionpeft.models.manage import manage

CONFIG = """
task: dreambooth
base: base
data:
  instance: {images: photos, prompt: a photo of sks robot}
adapter: {method: lora, rank: 2, targets: {unet: attention}}
train: {steps: 1, batch_size: 1, checkpoint_every: 0}
score: {every: 0}
output: out
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases of different families, and an adapter of the first."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_sd1().save_pretrained(folder / "base")
    tiny_sd2().save_pretrained(folder / "other")
    manager = manage(load_base(folder / "base"))
    manager.add("one", LoraSpec(rank=2))
    manager.capture("one").save(folder / "one.safetensors")
    return folder


@pytest.fixture
def place(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a config, two photographs, the bases and an adapter."""
    for path in bases.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "photos" / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with status 2; return its one line."""
    assert run(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("visionpeft: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("visionpeft: ")


def empty(place: Path) -> None:
    (place / "none").mkdir()


def text_as_jpg(place: Path) -> None:
    (place / "photos" / "notes.jpg").write_text("these are my notes\n")


def truncated(place: Path) -> None:
    whole = (place / "photos" / "0.jpg").read_bytes()
    (place / "photos" / "half.jpg").write_bytes(whole[: len(whole) // 2])


def dot(place: Path) -> None:
    Image.new("RGB", (1, 1)).save(place / "photos" / "dot.png")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge(place: Path) -> None:
    """A PNG of 20,000 × 20,000 pixels in a few bytes: its size must be seen before anything is decoded."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    (place / "photos" / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


def nothing(place: Path) -> None:
    del place


@pytest.mark.parametrize(
    ("prepare", "overrides", "says"),
    [
        (nothing, ["data.instance.images=photo"], ["photo", "Did you mean 'photos'?"]),
        (empty, ["data.instance.images=none"], ["none"]),
        (text_as_jpg, [], ["notes.jpg"]),
        (truncated, [], ["half.jpg"]),
        (dot, [], ["dot.png"]),
        (huge, [], ["huge.png", "16,384 pixels a side"]),
        (nothing, ["adapter.targets=atention"], ["atention", "Did you mean 'attention'?"]),
        (nothing, ["base=bases"], ["bases"]),
        (nothing, ["train.stepz=3"], ["override 'train.stepz=3': train.stepz is not a setting. Did you mean 'steps'?"]),
        (nothing, ["train.steps=x"], ["override 'train.steps=x': train.steps should be a whole number, not 'x'."]),
        (nothing, ["data.resolution=33"], ["33"]),
        (nothing, ["train.precision=fp16"], ["train.precision: 'fp16' needs a CUDA device"]),
        (nothing, ["train.trackers=[wandb]"], ["wandb"]),
    ],
)
def test_training_refuses_bad_input(
    capsys: pytest.CaptureFixture[str],
    place: Path,
    prepare: Callable[[Path], None],
    overrides: list[str],
    says: list[str],
):
    prepare(place)
    line = refused(capsys, "train", "job.yaml", *overrides)
    assert all(part in line for part in says), line
    assert not (place / "out" / "config.yaml").exists()
    assert not list((place).glob("out/**/*.safetensors"))


def test_a_finished_run_is_not_written_over(capsys: pytest.CaptureFixture[str], place: Path):
    (place / "out").mkdir()
    (place / "out" / "config.yaml").write_text("mine")
    line = refused(capsys, "train", "job.yaml")
    assert "out" in line
    assert "resume" in line
    assert [path.name for path in (place / "out").iterdir()] == ["config.yaml"]
    assert (place / "out" / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--prompt", "x", "--base", "other", "--adapter", "one.safetensors"], ["one", "sd1", "sd2"]),
        (["generate", "--prompt", "x", "--base", "base", "--sampler", "dim"], ["'dim'", "Did you mean 'ddim'?"]),
        (["generate", "--prompt", "x", "--base", "base", "--width", "33"], ["33"]),
        (["generate", "--prompt", "x", "--base", "base", "--adapter", "two.safetensors"], ["two.safetensors"]),
        (["generate", "--again", "photos/0.jpg", "--base", "base"], ["photos/0.jpg"]),
        (["export", "one.safetensors", "--format", "kohia"], ["'kohia'", "Did you mean 'kohya'?"]),
        (
            ["blend", "one.safetensors", "--output", "b.safetensors", "--method", "kat"],
            ["'kat'", "Did you mean 'cat'?"],
        ),
        (["inspect", "nothing.safetensors"], ["nothing.safetensors"]),
    ],
)
def test_other_commands_refuse_bad_input(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: list[str], says: list[str]
):
    before = sorted(place.iterdir())
    line = refused(capsys, *arguments)
    assert all(part in line for part in says), line
    assert [path for path in sorted(place.iterdir()) if path not in before and any(path.iterdir())] == []


@pytest.mark.parametrize("command", [["inspect"], ["export"], ["blend", "--output", "b.safetensors"]])
def test_damaged_and_dangerous_files_are_refused(capsys: pytest.CaptureFixture[str], place: Path, command: list[str]):
    whole = (place / "one.safetensors").read_bytes()
    (place / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    touched = place / "touched"
    (place / "evil.safetensors").write_bytes(pickle.dumps(Evil(str(touched))))
    assert "half.safetensors" in refused(capsys, *command, "half.safetensors")
    line = refused(capsys, *command, "evil.safetensors")
    assert "evil.safetensors" in line
    assert "pickle" in line
    assert not touched.exists()
    assert not (place / "b.safetensors").exists()


class Evil:
    """Would make a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_prompt_that_is_too_long_is_told_with_its_cut(capsys: pytest.CaptureFixture[str], place: Path):
    prompt = " ".join(["robot"] * 100 + ["blue"])
    assert run(["generate", "--prompt", prompt, "--base", "base", "--steps", "1"]) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "over 77 tokens" in err
    assert "blue" in err
    assert (place / "pictures" / "0000.png").exists()


def test_files_go_through_all_commands(capsys: pytest.CaptureFixture[str], place: Path):
    assert run(["blend", "one.safetensors=0.5", "one.safetensors=-1", "--output", "both.safetensors"]) == 0
    assert run(["export", "both.safetensors", "--output", "both.kohya.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "both.kohya.safetensors" in out
    assert "ComfyUI" in out
    assert run(["inspect", "both.kohya.safetensors", "--json"]) == 0
    assert '"format": "kohya"' in capsys.readouterr().out
    arguments = ["--base", "base", "--steps", "2", "--seed", "4", "--adapter", "both.kohya.safetensors=0,1"]
    assert run(["generate", "--prompt", "a robot", *arguments, "--json"]) == 0
    assert '"grid": "pictures/grid.png"' in capsys.readouterr().out
    again = ["--again", "pictures/0001.png", "--adapter", "both.kohya.safetensors", "--output", "again"]
    assert run(["generate", "--base", "base", *again]) == 0
    assert "again/0001.png" in capsys.readouterr().out
    assert run(["generate", "--base", "base", *again]) == 2


def test_a_run_from_settings_to_report_and_on(capsys: pytest.CaptureFixture[str], place: Path):
    assert run(["train", "job.yaml"]) == 0
    told = capsys.readouterr().out
    assert "out/adapter.safetensors" in told
    assert "out/report.html" in told
    first = (place / "out" / "adapter.safetensors").read_bytes()
    assert "already holds a run" in refused(capsys, "train", "job.yaml")
    assert (place / "out" / "adapter.safetensors").read_bytes() == first
    assert run(["train", "out/config.yaml", "resume=auto", "train.steps=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"] == "out/adapter.safetensors"
    assert (place / "out" / "adapter.safetensors").read_bytes() != first

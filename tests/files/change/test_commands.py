"""The commands that change files, end to end."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from scripts.export_lora import main as export_lora
from tests.files.change.support import adapter, single
from visionpeft.cli import run
from visionpeft.cli.change import strengths
from visionpeft.files import read
from visionpeft.files.change import open_checkpoint


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter("sd1", "lora").save("robot.safetensors")
    single("sd1", tmp_path / "base.safetensors")
    return "robot.safetensors"


def told(capsys, *arguments) -> tuple[int, str, str]:
    status = run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def answer(capsys, *arguments):
    status, out, err = told(capsys, *arguments, "--json")
    assert status == 0, out + err
    return json.loads(out)


def test_resize_states_what_it_keeps(file, capsys):
    status, out, _ = told(capsys, "resize", file, "--rank", "2", "--output", "small.safetensors", "--format", "kohya")
    assert status == 0
    assert "energy kept" in out
    assert "worst layer" in out
    assert "ComfyUI" in out
    assert read("small.safetensors").specs["unet"].rank == 2
    status, _, err = told(capsys, "resize", file, "--rank", "2", "--output", "small.safetensors")
    assert (status, err.count("\n")) == (2, 1)
    assert "exists" in err


def test_what_is_read_only_is_written_as_kohya(file, capsys):
    assert told(capsys, "export", file, "--format", "peft", "--output", "folder", "--dtype", "float32")[0] == 0
    found = answer(capsys, "resize", "folder", "--rank", "2", "--output", "small.safetensors")
    assert found["format"] == "kohya"
    assert read("small.safetensors").specs["unet"].rank == 2


def test_merge_and_extract_are_each_other_s_way_back(file, capsys):
    found = answer(capsys, "merge", "base.safetensors", f"{file}=unet:1,*:0", "--output", "merged.safetensors")
    assert found["tensors"] > 20
    assert found["rounding"]["share"] < 1e-5
    arguments = ("merged.safetensors", "base.safetensors", "--rank", "3", "--output", "back.safetensors")
    back = answer(capsys, "extract", *arguments)
    assert back["layers"] == found["tensors"]
    assert back["left out"] == {}
    assert set(read("back.safetensors").specs) == {"unet"}


def test_split_convert_and_rename(file, capsys):
    status, out, _ = told(capsys, "split", file, "--format", "kohya", "--by", "block", "--json")
    assert status == 1  # InvokeAI cannot tell the base of a part that has neither cross-attention nor text encoder
    made = json.loads(out)["files"]
    assert "robot.unet.mid_block.safetensors" in made
    assert all(Path(name).is_file() for name in made)
    converted = answer(capsys, "convert", file, "--format", "kohya", "--base", "base.safetensors")["file"]
    assert converted == "robot.kohya.safetensors"
    assert answer(capsys, "convert", converted, "--format", "diffusers", "--family", "sd1")["proof"]["meant_for"]
    named = answer(capsys, "rename", converted, "--trigger", "sks", "--set", "author=Ann", "--overwrite")
    assert named["metadata"]["modelspec.author"] == "Ann"
    assert read(converted).metadata.trigger_words == ("sks",)


def test_export_and_its_script_refuse_what_would_be_half_read(file, capsys):
    status, _, err = told(capsys, "export", file, "--format", "diffusers", "--for", "ComfyUI")
    assert status == 2
    assert "was not written" in err
    assert not Path("robot.diffusers.safetensors").exists()
    assert export_lora([file, "--format", "kohya", "--for", "ComfyUI", "--base", "base.safetensors"]) == 0
    assert Path("robot.kohya.safetensors").is_file()


def test_an_export_is_refused_by_default_where_a_main_program_would_half_read_it(file, capsys):
    adapter("sd1", "dora").save("dora.safetensors")
    arguments = ("export", "dora.safetensors", "--base", "base.safetensors", "--dtype", "float32")
    status, _, err = told(capsys, *arguments)
    assert status == 2
    assert "ComfyUI" in err
    assert "--even-if-half-read" in err
    assert not Path("dora.kohya.safetensors").exists()
    assert told(capsys, *arguments, "--even-if-half-read")[0] == 1  # written, and said to be wrong
    found = answer(capsys, *arguments, "--energy", "1", "--overwrite")
    assert float(found["energy kept"]) == pytest.approx(1.0)
    assert found["proof"]["programs"]["InvokeAI"]["applied"] == found["proof"]["programs"]["InvokeAI"]["expected"]
    assert answer(capsys, "export", "dora.safetensors", "--base", "base.safetensors", "--format", "diffusers",
                  "--target", "Diffusers")["proof"]["meant_for"] == ["diffusers"]  # fmt: skip


def test_blend_and_merge_take_other_programs_files(file, capsys):
    status, _, err = told(capsys, "convert", file, "--format", "kohya", "--output", "k.safetensors")
    assert status == 0, err
    answer(capsys, "blend", "k.safetensors=0.5", f"{file}=0.5", "--output", "both.safetensors", "--method", "linear")
    assert read("both.safetensors").specs.keys() == read(file).specs.keys()
    assert answer(capsys, "merge", "base.safetensors", "k.safetensors", "--output", "m.safetensors")["tensors"] > 20


def test_weights_are_read_by_part():
    assert strengths("a.safetensors=unet:1,*:0.5") == (Path("a.safetensors"), {"unet": 1.0, "*": 0.5})
    assert strengths("a.safetensors=-0.5") == (Path("a.safetensors"), -0.5)
    assert strengths("a.safetensors") == (Path("a.safetensors"), 1.0)


def test_a_half_precision_merge_says_what_rounding_took(file, capsys):
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in safetensors.torch.load_file("base.safetensors").items()
    }
    safetensors.torch.save_file(state, "half.safetensors")
    status, out, _ = told(capsys, "merge", "half.safetensors", f"{file}=0.001", "--output", "m.safetensors")
    assert status == 0
    assert "--dtype float32 keeps it" in out
    base = open_checkpoint("m.safetensors")
    assert base.like("unet.conv_in.weight").dtype == torch.float16

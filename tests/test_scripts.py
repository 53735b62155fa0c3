"""The training scripts: a settings file or flags, and overrides, come to the same settings as the program's."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from visionpeft.cli import script
from visionpeft.cli.script import Script
from visionpeft.config import RunConfig
from visionpeft.errors import VisionPeftError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch):
    """A function of a script's name and its arguments: the settings that it would train by."""
    found: list[RunConfig] = []
    monkeypatch.setattr(script, "train_and_tell", found.append)

    def read(name: str, *argv: object) -> RunConfig:
        made: Script = runpy.run_path(str(ROOT / "scripts" / f"train_{name}.py"))["SCRIPT"]
        made.main([str(argument) for argument in argv])
        return found.pop()

    return read


def test_flags_are_settings(settings, tmp_path: Path):
    table = tmp_path / "cells.v2.csv"
    table.write_text("path,label\n")
    run = settings("classifier", "--pictures", table, "--method", "vpt", "train.steps=7", "adapter.tokens=3")
    assert (run.task, run.base, run.output) == ("classify", "visionpeft/emoji-vit", Path("runs/cells.v2"))
    assert (run.data.source.format, run.data.source.path) == ("table", table)
    assert (run.adapter.method, run.adapter.tokens, run.train.steps) == ("vpt", 3, 7)
    run = settings("detector", "--pictures", tmp_path, "--format", "yolo", "--base", "x/y", "--output", tmp_path / "o")
    assert (run.task, run.base, run.output) == ("detect", "x/y", tmp_path / "o")
    assert (run.data.source.format, run.data.source.folder) == ("yolo", tmp_path)
    run = settings("dreambooth", "--images", tmp_path, "--prompt", "a photo of sks owl", "--prior-prompt", "an owl")
    assert (run.base, run.output.name, run.data.prior.prompt) == ("visionpeft/emoji-sd", tmp_path.name, "an owl")


def test_speech_is_a_table_or_a_folder(settings, tmp_path: Path):
    (tmp_path / "talks.tsv").touch()
    (tmp_path / "voices" / "clips").mkdir(parents=True)
    base = ("--base", "openai/whisper-tiny")
    run = settings("whisper", "--speech", tmp_path / "talks.tsv", *base, "--method", "prompt", "adapter.tokens=4")
    assert (run.task, run.output, run.data.source.path) == ("transcribe", Path("runs/talks"), tmp_path / "talks.tsv")
    assert (run.adapter.method, run.adapter.tokens, run.language) == ("prompt", 4, None)
    assert settings("whisper", "--speech", tmp_path / "talks.tsv").base == "visionpeft/small-whisper"
    run = settings("whisper", "--speech", tmp_path / "voices", *base, "--language", "mr", "--by", "client_id")
    assert run.data.split.by == "client_id"
    assert (run.data.source.format, run.data.source.folder, run.language) == ("common_voice", tmp_path / "voices", "mr")


FILES = {
    "dreambooth": "dreambooth_demo.yaml",
    "classifier": "classify_table.yaml",
    "detector": "detect_coco.yaml",
    "whisper": "transcribe_table.yaml",
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_is_read_and_what_is_given_beside_it_comes_first(settings, name: str):
    run = settings(name, ROOT / "configs" / FILES[name], "train.steps=3", "--output", "elsewhere")
    assert (run.task, run.train.steps, run.output) == (FILES[name].split("_")[0], 3, Path("elsewhere"))


def test_overrides_alone_need_no_file(settings, tmp_path: Path):
    run = settings("classifier", "output=here", "--pictures", tmp_path)
    assert (run.output, run.data.source.format) == (Path("here"), "folder")


def test_data_that_are_not_there_are_one_line(settings, tmp_path: Path):
    with pytest.raises(VisionPeftError, match=r"no\.csv does not exist"):
        settings("classifier", "--pictures", tmp_path / "no.csv")

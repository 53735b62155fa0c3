"""The commands on speech, from sound to transcripts, figures and folders, with a tiny Whisper."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.inference.test_take_away import saved
from tests.tiny_speech import noise, whole_whisper
from visionpeft.adapters.spec import LoraSpec
from visionpeft.cli import run
from visionpeft.files.ctranslate2 import write_transformers


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    base = write_transformers(whole_whisper(), folder / "base")
    saved(base, folder / "a.safetensors", LoraSpec(rank=2))
    (folder / "talks").mkdir()
    with (folder / "talks" / "table.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "text", "speaker"))
        for number in range(4):
            soundfile.write(folder / "talks" / f"{number}.wav", np.tanh(noise(number, 1.0)), 16_000)
            rows.writerow((f"{number}.wav", "take metformin twice", "ab"[number % 2]))
    return folder


def told(capsys, *arguments: object) -> tuple[int, str, str]:
    status = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_sound_becomes_subtitles(place, tmp_path, capsys):
    adapter = place / "a.safetensors"
    words = ("transcribe", place / "talks", "--adapter", f"{adapter}=0.5", "--base", place / "base")
    formats = ("--output", tmp_path / "out", "--format", "srt", "--format", "json")
    status, out, err = told(capsys, *words, *formats)
    assert status == 0, err
    assert "real-time factor" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{number}.{ending}" for number in range(4) for ending in ("srt", "json")
    )
    assert json.loads((tmp_path / "out" / "0.json").read_text())["adapters"] == {str(adapter): 0.5}
    assert told(capsys, *words, *formats)[0] == 2


def test_one_file_is_printed_and_as_json(place, capsys):
    status, out, err = told(capsys, "transcribe", place / "talks" / "1.wav", "--base", place / "base", "--json")
    assert status == 0, err
    (one,) = json.loads(out)["transcripts"]
    assert one["seconds"] == 1.0
    assert (
        told(capsys, "transcribe", place / "talks" / "1.wav", "--base", place / "base")[1].strip()
        == one["text"].strip()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "doc"), "one of txt, srt, vtt, json"),
        (("--windows", "movd"), "Did you mean 'moved'"),
        (("--language", "de"), "English alone"),
        (("--adapter", "gone.safetensors"), "gone.safetensors"),
        (("--adapter", "a.safetensors=loud"), "should be a number"),
    ],
)
def test_bad_input_is_one_line(place, capsys, arguments, message):
    status, _, err = told(capsys, "transcribe", place / "talks", "--base", place / "base", *arguments)
    assert status == 2
    assert message in err


def test_a_speech_model_is_measured(place, tmp_path, capsys):
    words = ("evaluate", place / "a.safetensors", "--data", place / "talks" / "table.csv", "--base", place / "base")
    status, _, err = told(capsys, *words, "--output", tmp_path / "ev", "--json")
    assert status == 0, err
    metrics = json.loads((tmp_path / "ev" / "metrics.json").read_text())
    assert metrics["figures"]["utterances"] == 4
    assert {group["value"] for group in metrics["figures"]["groups"]["speaker"]} == {"a", "b"}
    assert metrics["figures"]["language"] == "en"
    assert "<audio" in (tmp_path / "ev" / "report.html").read_text()


@pytest.mark.parametrize("format", ["peft", "transformers", "ctranslate2"])
def test_a_speech_adapter_is_taken_away(place, tmp_path, capsys, format):
    if format == "ctranslate2":
        pytest.importorskip("ctranslate2")
    target = tmp_path / format
    status, out, err = told(capsys, "export", place / "a.safetensors", "--format", format, "--output", target,
                            "--base", place / "base", "--dtype", "float32")  # fmt: skip
    assert status == 0, err
    assert target.is_dir()
    if format == "peft":
        assert "modules apply" in out
        assert "vLLM: serves it" in out

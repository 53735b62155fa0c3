"""A transcription from settings to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_speech import speech_settings, write_speech, write_whisper
from visionpeft.adapters.archive import Adapter
from visionpeft.cli import run
from visionpeft.config import config_from
from visionpeft.delivery import RunResult
from visionpeft.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivered")
    write_whisper(folder / "base")
    write_speech(folder / "speech")
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> RunResult:
    settings = speech_settings(place)
    settings["train"] |= {"memory": {"base": "int8"}}
    result = train(config_from(settings))
    assert result is not None
    return result


def test_a_run_leaves_adapter_figures_and_a_page(place: Path, done: RunResult):
    metrics = json.loads((place / "out" / "metrics.json").read_text())
    assert metrics["figures"]["rates"]["raw"]["wer"]["rate"] == done.metrics["wer_raw"]
    assert metrics["utterances"] == {"train": 8, "validation": 4, "test": 4}
    assert any("kept in int8" in line for line in metrics["warnings"])
    assert done.adapter is not None
    assert Adapter.load(done.adapter).metadata.heads["language"] == "mr"
    assert "<script" not in done.report.read_text()
    assert (place / "out" / "config.yaml").is_file()


def test_evaluating_the_run_again_gives_its_figures(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    again = tmp_path / "again"
    status = run([str(argument) for argument in ("evaluate", place / "out", "--output", again, "--json")])
    told = capsys.readouterr()
    assert status == 0, told.err
    figures = json.loads(told.out)["metrics"]
    same = {name: value for name, value in done.metrics.items() if name != "real_time_factor"}
    assert {name: figures[name] for name in same} == same


def test_a_run_from_scratch_is_measured_on_its_own_base(place: Path, tmp_path: Path):
    more = {"scratch": True, "output": str(tmp_path / "out"), "train": {"steps": 1, "seed": 4, "evaluate_every": 0}}
    result = train(config_from(speech_settings(place, **more)))
    assert result is not None
    assert result.adapter is not None
    assert Adapter.load(result.adapter).metadata.heads["scratch"] == 4

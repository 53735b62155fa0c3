"""A transcription from settings to report."""

from __future__ import annotations

import json
from pathlib import Path

import jiwer
import pytest

from tests.tiny_speech import speech_settings, write_speech, write_whisper
from visionpeft.adapters.archive import Adapter
from visionpeft.cli import run
from visionpeft.config import config_from
from visionpeft.data.speech.readers import open_speech
from visionpeft.data.speech.splits import split_speech
from visionpeft.delivery import RunResult
from visionpeft.errors import ConfigError
from visionpeft.inference.about import SpeechAbout
from visionpeft.inference.listener import Listener
from visionpeft.models.speech import load_speech
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


def test_the_base_alone_is_measured_on_the_same_speech(place: Path, done: RunResult, tmp_path: Path):
    config = config_from(speech_settings(place))
    test = split_speech(open_speech(config.data), config.data.split, 0).test
    bare = Listener(load_speech(place / "base"), SpeechAbout(language="mr", task="transcribe", timestamps=False))
    found = bare.transcripts(test)
    metrics = json.loads((place / "out" / "metrics.json").read_text())
    assert done.metrics["base_wer_raw"] == pytest.approx(jiwer.wer(list(found.references), list(found.hypotheses)))
    assert metrics["base_figures"]["rates"]["raw"]["wer"]["rate"] == done.metrics["base_wer_raw"]
    assert [row["written"] for row in metrics["texts"]] != list(found.hypotheses)
    said = run(["evaluate", str(place / "out"), "report.base=false", "--output", str(tmp_path / "again")])
    assert said == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["base_figures"] is None


def test_settings_of_the_report_hold_for_other_data_too(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = ("--data", place / "speech" / "speech.csv", "on_bad=skip", "report.terms=[low]", "report.base=false")
    for what in (place / "out", done.adapter):
        output = tmp_path / Path(str(what)).name
        assert run([str(word) for word in ("evaluate", what, *data, "--output", output)]) == 0, capsys.readouterr().err
        figures = json.loads((output / "metrics.json").read_text())["figures"]
        assert [term["term"] for term in figures["terms"]["by_term"]] == ["low"]
        wrong = ("evaluate", what, *data, "report.term=[a]", "--output", tmp_path / "no")
        assert run([str(word) for word in wrong]) == 2
        assert "override 'report.term=[a]'" in capsys.readouterr().err


@pytest.mark.parametrize(("report", "message"), [({"by": ["accnt"]}, "no column 'accnt'"), ({"terms": ["…"]}, "'…'")])
def test_a_report_that_cannot_be_made_is_told_before_training(place: Path, tmp_path: Path, report: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        train(config_from(speech_settings(place, report=report, output=str(tmp_path / "out"))))
    assert not (tmp_path / "out" / "adapter.safetensors").exists()
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_run_from_scratch_is_measured_on_its_own_base(place: Path, tmp_path: Path):
    more = {"scratch": True, "output": str(tmp_path / "out"), "train": {"steps": 1, "seed": 4, "evaluate_every": 0}}
    result = train(config_from(speech_settings(place, **more)))
    assert result is not None
    assert result.adapter is not None
    assert Adapter.load(result.adapter).metadata.heads["scratch"] == 4
    assert "base_wer_raw" not in result.metrics  # random weights have nothing to say

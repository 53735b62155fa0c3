"""The demo of transcription in its short form: its report, and that its settings are a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visionpeft.adapters.archive import Adapter
from visionpeft.cli import run
from visionpeft.config import config_from
from visionpeft.demo.transcribe import DIGITS, demo_settings


@pytest.mark.slow
def test_a_speaker_is_learned_from_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "demo"
    status = run(["demo", "transcribe", "--short", "--output", str(output), "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err
    found = json.loads(told.out)
    assert Adapter.load(Path(found["adapter"])).metadata.base == "visionpeft/small-whisper"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["utterances"] == {"train": 65, "validation": 15, "test": 20}
    assert metrics["base_figures"]["rates"]["marks"]["wer"]["rate"] == found["metrics"]["base_wer_marks"]
    assert 0.05 < found["metrics"]["base_wer_marks"] < 0.5
    assert found["metrics"]["wer_marks"] < 0.5
    assert {term["term"] for term in metrics["figures"]["terms"]["by_term"]} == set(DIGITS)
    assert len(metrics["figures"]["groups"]["length"]) == 3
    page = Path(found["report"]).read_text()
    assert "<audio" in page
    assert "The base alone: " in page
    assert run(["demo", "transcribe", "--short", "--output", str(output)]) == 2
    assert "exists: nothing is written over" in capsys.readouterr().err


def test_its_settings_are_a_run():
    for short in (False, True):
        config = config_from(demo_settings(Path("demo"), short=short))
        assert config.task == "transcribe"
        assert config.train.evaluate_every <= config.train.steps

"""The demo of transcription, with a tiny Whisper in the place of the embedded one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny_speech
from visionpeft.adapters.archive import Adapter
from visionpeft.cli import run
from visionpeft.config import config_from
from visionpeft.demo.transcribe import demo_settings
from visionpeft.models.speech import SPEECH_BASES


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tiny_speech, "SECONDS", 6)
    folder = tiny_speech.write_whisper(tmp_path / "base", multilingual=False)
    monkeypatch.setitem(SPEECH_BASES, "visionpeft/small-whisper", str(folder))
    return folder


@pytest.mark.usefixtures("base")
def test_a_speaker_is_learned_from_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "demo"
    status = run(["demo", "transcribe", "--short", "--output", str(output), "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err
    found = json.loads(told.out)
    assert Adapter.load(Path(found["adapter"])).metadata.base == "visionpeft/small-whisper"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["utterances"] == {"train": 65, "validation": 15, "test": 20}
    assert "<audio" in Path(found["report"]).read_text()
    assert run(["demo", "transcribe", "--short", "--output", str(output)]) == 2
    assert "exists: nothing is written over" in capsys.readouterr().err


def test_its_settings_are_a_run():
    for short in (False, True):
        config = config_from(demo_settings(Path("demo"), short=short))
        assert config.task == "transcribe"
        assert config.train.evaluate_every <= config.train.steps

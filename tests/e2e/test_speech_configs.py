"""Every settings file of transcription runs as it stands, but for its data, its base and its length; so the script."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from tests.e2e.place import ROOT
from tests.tiny_speech import write_speech, write_whisper
from visionpeft.config import load_config
from visionpeft.run import train

SHORT = ("train.steps=1", "train.batch_size=2", "train.evaluate_every=1", "train.checkpoint_every=0",
         "train.precision=fp32", "report.resamples=5")  # fmt: skip
CONFIGS = sorted((ROOT / "configs").glob("transcribe_*.yaml"))


def table(place: Path) -> list[str]:
    return [f"data.source.path={write_speech(place / 'speech')}"]


def rows(place: Path) -> list[dict[str, str]]:
    with write_speech(place).open() as file:
        return list(csv.DictReader(file))


def common_voice(place: Path) -> list[str]:
    folder = place / "cv"
    found = rows(folder / "clips")
    for name, part in (("train", found[:8]), ("dev", found[8:12]), ("test", found[12:])):
        lines = ["\t".join(("client_id", "path", "sentence"))]
        lines += ["\t".join((row["speaker"], row["path"], row["text"])) for row in part]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return [f"data.source.folder={folder}"]


def audio_folder(place: Path) -> list[str]:
    folder = place / "calls"
    lines = [json.dumps({"file_name": row["path"], "transcription": row["text"]}) for row in rows(folder)]
    (folder / "speech.csv").unlink()
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return [f"data.source.folder={folder}"]


DATA = {
    "transcribe_table": table,
    "transcribe_common_voice": common_voice,
    "transcribe_prompt": audio_folder,
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_settings_file_runs(config: Path, tmp_path: Path):
    base = write_whisper(tmp_path / "base")
    result = train(
        load_config(config, [*DATA[config.stem](tmp_path), *SHORT, f"base={base}", f"output={tmp_path / 'out'}"])
    )
    assert result is not None
    assert result.report.is_file()
    assert result.metrics


def test_the_script_trains_on_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = importlib.util.spec_from_file_location("train_whisper", ROOT / "scripts" / "train_whisper.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    base, speech = write_whisper(tmp_path / "base"), write_speech(tmp_path / "speech")
    flags = ["--base", base, "--speech", speech, "--language", "mr", "--by", "speaker", "--output", tmp_path / "out"]
    script.main([*SHORT, *map(str, flags)])
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    assert "wer_raw" in capsys.readouterr().out


def test_the_script_knows_a_folder_by_what_is_in_it(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("train_whisper", ROOT / "scripts" / "train_whisper.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.source(tmp_path)[0] == "data.source.format=audiofolder"
    (tmp_path / "clips").mkdir()
    assert script.source(tmp_path)[0] == "data.source.format=common_voice"
    assert script.source(tmp_path / "a.csv") == ["data.source.format=table", f"data.source.path={tmp_path / 'a.csv'}"]

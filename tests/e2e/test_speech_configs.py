"""Every settings file of transcription runs as it stands, but for its data, its base and its length."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import soundfile

from tests.e2e.place import ROOT
from tests.tiny_speech import RATE, tone, write_speech, write_whisper
from visionpeft.config import load_config
from visionpeft.run import train

SHORT = ("train.steps=1", "train.batch_size=2", "train.evaluate_every=1", "train.checkpoint_every=0",
         "train.precision=fp32", "report.resamples=5", "data.workers=1")  # fmt: skip
CONFIGS = sorted((ROOT / "configs").glob("transcribe_*.yaml"))


def table(place: Path) -> list[str]:
    return [f"data.source.path={write_speech(place / 'speech', 32)}"]


def common_voice(place: Path) -> list[str]:
    (place / "mr" / "clips").mkdir(parents=True)
    for part, count in {"train": 6, "dev": 2, "test": 3}.items():
        with (place / "mr" / f"{part}.tsv").open("w", newline="") as file:
            rows = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
            rows.writerow(["client_id", "path", "sentence", "accents", "gender"])
            for number in range(count):
                name = f"{part}{number}.wav"
                soundfile.write(place / "mr" / "clips" / name, tone(0.5, 200 + 50 * len(part) + number), RATE)
                rows.writerow([f"{part}-{number % 2}", name, "नमस्ते", "पुणे", "male"])
    return [f"data.source.folder={place / 'mr'}"]


def audiofolder(place: Path) -> list[str]:
    folder = place / "interviews"
    folder.mkdir()
    segments = [{"start": start, "end": start + 1, "text": f"Teil {start}"} for start in range(4)]
    lines: list[str] = []
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", tone(4.0, 300 + 20 * number), RATE)
        row = {"file_name": f"{number}.wav", "text": " ".join(one["text"] for one in segments), "segments": segments}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return [f"data.source.folder={folder}", "data.longest=2"]


DATA = {
    "transcribe_table": table,
    "transcribe_common_voice": common_voice,
    "transcribe_large": audiofolder,
    "transcribe_prompt": audiofolder,
}


@pytest.mark.parametrize("embedded", [False, True], ids=["tiny", "embedded"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_settings_file_runs(config: Path, embedded: bool, tmp_path: Path):
    base = (
        ["base=visionpeft/small-whisper", "language=null"]
        if embedded
        else [f"base={write_whisper(tmp_path / 'base', multilingual=config.stem != 'transcribe_table')}"]
    )
    changes = [*DATA[config.stem](tmp_path), *SHORT, *base, f"output={tmp_path / 'out'}"]
    result = train(load_config(config, changes))
    assert result is not None
    assert result.report.is_file()
    assert result.metrics

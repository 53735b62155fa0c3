"""Small sets of tones with words, written in each layout."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from visionpeft.data.speech.settings import SpeechConfig
from visionpeft.progress import SilentProgress

soundfile = pytest.importorskip("soundfile", reason="needs the extra speech")

SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS", "opus": "OPUS"}


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def tone(seconds=1.0, hertz=440.0, rate=16_000, loud=0.3):
    return (loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, sound=None, rate=16_000, subtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "OGG" if path.suffix == ".opus" else None
    sound = tone(rate=rate) if sound is None else sound
    soundfile.write(path, sound, rate, subtype=subtype or SUBTYPES[path.suffix[1:]], format=kind)
    return path


def table(path, rows):
    """``rows``: dictionaries, written as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def clips(folder, count=3, kind="wav", **columns):
    """A folder with ``count`` tones of different pitch and its table, each with other words."""
    rows = []
    for number in range(count):
        write(folder / f"{number}.{kind}", tone(0.5 + 0.1 * number, 300 + 50 * number))
        more = {name: values[number % len(values)] for name, values in columns.items()}
        rows.append({"path": f"{number}.{kind}", "text": f"words {number}", **more})
    return table(folder / "clips.csv", rows)


def config(path, format="table", key=None, **more):
    key = key or ("path" if format == "table" else "folder")
    source = {"format": format, key: path, **more.pop("source", {})}
    return SpeechConfig.model_validate({"source": source, **more})

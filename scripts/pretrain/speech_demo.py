"""Write the left-out speaker that the demo adapts to: ``python -m scripts.pretrain.speech_demo --fsdd fsdd.zip``.

Recorded digits are joined to strings with short gaps; no recording is in two strings, and those of the test strings are
the ones that the data set itself calls its test part, and five more of each digit.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 8000
"""Samples a second of the recordings."""
DEMO, MEASURED = "nicolas", "lucas"
"""Speakers whom no pretraining hears: the one of the demo, and the one that the base is measured with."""

Audio = NDArray[np.float32]


def recordings(archive: Path, speaker: str) -> dict[tuple[int, int], Audio]:
    """(digit, index) -> samples, of one speaker of the Free Spoken Digit Dataset."""
    found = dict[tuple[int, int], Audio]()
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            digit, who, index = Path(name).stem.split("_") if name.endswith(".wav") else ("", "", "")
            if who == speaker:
                samples, rate = soundfile.read(io.BytesIO(packed.read(name)), dtype="float32")
                if rate != RATE:
                    raise ValueError(f"{name}: {rate} samples a second, not {RATE}")
                found[int(digit), int(index)] = samples
    return found


def strings(clips: dict[tuple[int, int], Audio], length: int, rng: np.random.Generator) -> Iterator[tuple[Audio, str]]:
    """Join all clips, in random order, to strings of ``length`` digits with gaps of 0.1 to 0.3 s; with their texts."""
    order = rng.permutation(sorted(clips))
    for start in range(0, len(order) - length + 1, length):
        chosen = [(int(digit), int(index)) for digit, index in order[start : start + length]]
        parts = [np.zeros(int(RATE * rng.uniform(0.1, 0.3)), np.float32)]
        for key in chosen:
            parts += [clips[key], np.zeros(int(RATE * rng.uniform(0.1, 0.3)), np.float32)]
        yield np.concatenate(parts), " ".join(DIGITS[digit] for digit, _ in chosen)


def write_demo(archive: Path, folder: Path, *, length: int, indices: dict[str, range], seed: int) -> None:
    """Write ``folder/{train,test}/*.flac`` and ``folder/metadata.csv``."""
    rng, every = np.random.default_rng(seed), recordings(archive, DEMO)
    rows = list[tuple[str, str, str, str]]()
    for split, allowed in indices.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        clips = {key: samples for key, samples in every.items() if key[1] in allowed}
        for number, (samples, text) in enumerate(strings(clips, length, rng)):
            name = f"{split}/{DEMO}-{number:02}.flac"
            soundfile.write(folder / name, samples, RATE)
            rows.append((name, text, DEMO, split))
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file_name", "text", "speaker", "split"))
        table.writerows(rows)


def main() -> None:
    """Write the demo's recordings."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pretrain.speech_demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fsdd", type=Path, required=True, help="the data set, github.com/Jakobovski/free-spoken-digit-dataset"
    )
    parser.add_argument("--out", type=Path, default=Path("visionpeft/assets/speech"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    indices = {"train": range(10, 50), "test": range(10)}
    write_demo(options.fsdd, options.out, length=5, indices=indices, seed=options.seed)


if __name__ == "__main__":
    main()

"""Synthetic voices of Debian's packages: espeak-ng, flite and festival say a text, and it is heard at 16 kHz."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from scripts.pretrain.speech_text import listed

RATE = 16_000
ACCENTS = listed("en-us en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc")
VARIANTS = listed(
    "m1 m2 m3 m4 m5 m6 m8 f1 f2 f3 f4 Alex Alicia Andrea Andy Annie Gene Gene2 Henrique Hugo Jacky Lee Marco "
    "Mario Michael Mike Nguyen adam anika antonio aunty belinda benjamin boris caleb david ed edward grandma "
    "gustave iven iven3 john linda marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro "
    "shelby steph steph3 travis victor zac"
)
LEFT_OUT_VARIANTS = ("m7", "f5")
FLITE, LEFT_OUT_FLITE = ("awb", "slt", "kal16"), ("rms",)
FESTIVAL = ("ked_diphone", "kal_diphone", "cmu_us_slt_arctic_hts")

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Voice:
    """Who speaks: a program, a name that it knows, and for espeak-ng words a minute and pitch."""

    program: str
    name: str
    pace: int = 160
    pitch: int = 50

    def __str__(self) -> str:
        return f"{self.program} {self.name}"


def espeak_voice(rng: np.random.Generator, variants: Sequence[str] = VARIANTS) -> Voice:
    """A random accent, variant, pace and pitch."""
    name = f"{ACCENTS[rng.integers(len(ACCENTS))]}+{variants[rng.integers(len(variants))]}"
    return Voice("espeak", name, int(rng.integers(115, 205)), int(rng.integers(20, 85)))


def resampled(samples: NDArray[np.floating], rate: int) -> Audio:
    """Samples of any rate at 16 kHz."""
    common = gcd(rate, RATE)
    return resample_poly(samples, RATE // common, rate // common).astype(np.float32)


def trimmed(audio: Audio, *, below: float = 1e-3, around: float = 0.03) -> Audio:
    """Sound without the silence before and after it: what lies 30 dB or more below its loudest 10 ms."""
    step = RATE // 100
    power = np.square(audio[: len(audio) // step * step]).reshape(-1, step).mean(1)
    loud = np.flatnonzero(power > below * power.max(initial=0))
    if not len(loud):
        return audio
    edge = int(around * RATE)
    return audio[max(0, loud[0] * step - edge) : (loud[-1] + 1) * step + edge]


def spoken(voice: Voice, texts: Sequence[str]) -> list[Audio]:
    """What the voice says, trimmed, one clip a text.

    Raises:
        FileNotFoundError: the program is not installed.
        CalledProcessError: it does not know the voice.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.wav" for index in range(len(texts))]
        if voice.program == "festival":
            _festival(voice, texts, files)
        else:
            for text, file in zip(texts, files, strict=True):
                subprocess.run(_command(voice, text, file), check=True, capture_output=True)
        return [trimmed(resampled(*soundfile.read(file, dtype="float32"))) for file in files]


def _command(voice: Voice, text: str, file: Path) -> list[str]:
    if voice.program == "espeak":
        how = ["-v", voice.name, "-s", str(voice.pace), "-p", str(voice.pitch)]
        return ["espeak-ng", *how, "-w", str(file), text]
    return ["flite", "-voice", voice.name, "-t", text, "-o", str(file)]


def _festival(voice: Voice, texts: Sequence[str], files: Sequence[Path]) -> None:
    lines = [f"(voice_{voice.name})"]
    for text, file in zip(texts, files, strict=True):
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{file}" \'riff)')
    program = files[0].parent / "say.scm"
    program.write_text("\n".join(lines))
    subprocess.run(["festival", "-b", str(program)], check=True, capture_output=True)

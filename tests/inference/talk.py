"""Sound in which every word can be heard by arithmetic, and a model that hears it: what windows are tried with."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from visionpeft.data.speech.audio import RATE
from visionpeft.inference.transcribe_windows import Heard

FIRST = 1000
"""The token of 0.00 s; word number n of a talk is token n."""

_BASE, _STEP = 0.1, 0.0005


@dataclass(frozen=True)
class Talk:
    """Words one after the other: each is a stretch of one loudness, which tells its number; between them is silence."""

    words: tuple[tuple[float, float], ...]
    seconds: float

    @property
    def samples(self):
        sound = np.zeros(round(self.seconds * RATE), np.float32)
        for number, (start, end) in enumerate(self.words):
            sound[round(start * RATE) : round(end * RATE)] = _BASE + _STEP * number
        return sound

    def part(self, start, end):
        return self.samples[round(start * RATE) : round(end * RATE)]


def talk(seed: int, seconds: float, pause=(0.05, 1.5)) -> Talk:
    rng = np.random.default_rng(seed)
    words, place = [], float(rng.uniform(*pause))
    while place + 1 < seconds:
        end = place + float(rng.uniform(0.15, 0.9))
        words.append((round(place, 2), round(end, 2)))
        place = end + float(rng.uniform(*pause))
    return Talk(tuple(words), seconds)


@dataclass
class Oracle:
    """Hears every word that is whole in a clip, and half a word as a wrong one.

    Attributes:
        phrase: words to a segment.
        open_end: whether it leaves the last segment of a clip open, as a model does that is cut off.
    """

    phrase: int = 4
    open_end: bool = True
    timestamps: bool = True
    language: str | None = "en"
    task: str = "transcribe"
    sizes: list[int] = field(default_factory=list)
    longest: float = 0.0

    def heard(self, clips, *, timestamps):
        self.sizes.append(len(clips))
        self.longest = max(self.longest, *(len(clip) / RATE for clip in clips))
        return [Heard(self._ids(clip, timestamps), FIRST, self._text) for clip in clips]

    def _ids(self, clip, timestamps):
        found = spoken(clip)
        ids = []
        for start in range(0, len(found), self.phrase):
            part = found[start : start + self.phrase]
            last = start + self.phrase >= len(found)
            ids += [FIRST + round(part[0][1] / 0.02), *(number for number, _, _ in part)]
            ids += [] if last and self.open_end else [FIRST + round(part[-1][2] / 0.02)]
        return ids if timestamps else [token for token in ids if token < FIRST]

    @staticmethod
    def _text(ids):
        return " ".join(f"w{number}" for number in ids)


def spoken(clip):
    """(number, start, end) of each word in a clip; a word of which the beginning or the end is missing is 999."""
    loud = np.concatenate([[0.0], clip, [0.0]]).astype(np.float64)
    edges = np.flatnonzero(np.diff(np.rint((loud - _BASE) / _STEP)))
    found = []
    for begin, end in itertools.pairwise(edges):
        if loud[begin + 1] > _BASE / 2:
            cut = begin == 0 or end == len(clip)
            found.append((999 if cut else round((loud[begin + 1] - _BASE) / _STEP), begin / RATE, end / RATE))
    return found

"""Transcripts to measure, and the sound that they are of."""

from __future__ import annotations

import numpy as np

from visionpeft.evaluation.speech.transcripts import Transcripts

WORDS = ("the", "patient", "takes", "metformin", "and", "acetylsalicylic", "acid", "twice", "a", "heart", "catheter")


def sound(index: int, seconds: float = 0.25) -> np.ndarray:
    return np.sin(np.arange(int(16_000 * seconds)) * 0.05 * (index + 1)).astype(np.float32) * 0.5


def random_transcripts(seed: int, count: int = 40) -> Transcripts:
    """Sentences with words that are exchanged, left out and put in, of three speakers."""
    rng = np.random.default_rng(seed)
    said, written = [], []
    for _ in range(count):
        words = list(rng.choice(WORDS, rng.integers(1, 12)))
        spoiled = []
        for word in words:
            way = rng.integers(0, 8)
            spoiled += [] if way == 0 else ["uh", word] if way == 1 else ["hm"] if way == 2 else [word]
        said.append(" ".join(words))
        written.append(" ".join(spoiled))
    speakers = tuple(str(name) for name in rng.choice(["anna", "ben", "carl"], count))
    seconds = tuple(float(value) for value in rng.uniform(0.5, 25, count))
    names = tuple(f"clip {number}" for number in range(count))
    return Transcripts(names, tuple(said), tuple(written), {"speaker": speakers}, seconds, 12.5)


def few(*pairs: tuple[str, str], **columns: tuple[str, ...]) -> Transcripts:
    said, written = zip(*pairs, strict=True)
    names = tuple(str(number) for number in range(len(pairs)))
    return Transcripts(names, said, written, columns, (1.0,) * len(pairs))

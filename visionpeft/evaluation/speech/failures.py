"""Hallucinations and repetitions: how a model that writes fluently goes wrong.

The definitions are this program's own, simple enough to check by eye. Words are compared with marks kept.

- **repetition**: a phrase of 1 to 12 words stands at least 3 times in a row in what was written, and at least 2 times
  more in a row than any phrase of as many words in what was said; or 1 to 20 letters stand at least 10 times in a row,
  spaces left out, and nothing does so in what was said.
- **hallucination**: text that was not in the sound, in an utterance without a repetition:
  ``silence``: nothing was said, and something was written; ``inserted``: at least 5 words in a row that the alignment
  puts in; ``unrelated``: at least 3 words were written, at most 1 in 5 of them was said, and three quarters of the
  letters are wrong however texts are compared ("6 5" for "six five" is something else, and right).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from visionpeft.evaluation.speech.alignment import Alignment, aligned_characters

Failure = Literal["repetition", "silence", "inserted", "unrelated"]

LONGEST_PHRASE, TIMES, MORE_TIMES = 12, 3, 2
_STUCK = re.compile(r"(.{1,20}?)\1{9}")
INSERTED_WORDS = 5
UNRELATED_WORDS, UNRELATED_HITS, UNRELATED_LETTERS = 3, 0.2, 0.75


class FailureFigures(BaseModel):
    """How many utterances failed.

    Attributes:
        repetitions: with a phrase again and again.
        hallucinations: with text that was not in the sound: the three below together.
        silence: nothing was said, something was written.
        inserted: many words in a row that nobody said.
        unrelated: something else altogether.
        utterances: how many there are.
    """

    model_config = ConfigDict(frozen=True)

    repetitions: int
    hallucinations: int
    silence: int
    inserted: int
    unrelated: int
    utterances: int


class Run(NamedTuple):
    """A phrase, and how often it stands in a row."""

    phrase: tuple[str, ...]
    times: int


def strangeness(said: Sequence[str], written: Sequence[str]) -> list[float]:
    """Return which share of the letters of each pair of texts is wrong, 0 to 1, whatever is apart by spaces.

    The edits of fewest letters, by the length of the longer text.
    """
    pairs = [("".join(left.split()), "".join(right.split())) for left, right in zip(said, written, strict=True)]
    aligned = aligned_characters([left for left, _ in pairs], [right for _, right in pairs])
    wrong = [
        sum(max(len(step.reference), len(step.hypothesis)) for step in steps if step.kind != "equal")
        for steps in aligned
    ]
    return [count / max(len(left), len(right), 1) for count, (left, right) in zip(wrong, pairs, strict=True)]


def failure_of(words: Alignment, strange: float) -> Failure | None:
    """Return how an utterance failed; None where it did not, however many words are wrong.

    Args:
        words: the alignment of its words.
        strange: its `strangeness`, after the normalisation that leaves least of it.
    """
    said = [word for step in words for word in step.reference]
    written = [word for step in words for word in step.hypothesis]
    if repeated(said, written) is not None or (stuck(written) and not stuck(said)):
        return "repetition"
    if not said:
        return "silence" if written else None
    if any(step.kind == "insert" and len(step.hypothesis) >= INSERTED_WORDS for step in words):
        return "inserted"
    hits = sum(len(step.reference) for step in words if step.kind == "equal")
    unlike = len(written) >= UNRELATED_WORDS and hits <= UNRELATED_HITS * len(written)
    return "unrelated" if unlike and strange >= UNRELATED_LETTERS else None


def repeated(said: Sequence[str], written: Sequence[str]) -> Run | None:
    """Return the phrase that was written again and again and not said so; None where there is none."""
    for length in range(1, min(LONGEST_PHRASE, len(words := tuple(written)) // TIMES) + 1):
        run = longest_run(words, length)
        if run.times >= TIMES and run.times - longest_run(tuple(said), length).times >= MORE_TIMES:
            return run
    return None


def stuck(words: Sequence[str]) -> bool:
    """Whether 1 to 20 letters stand at least 10 times in a row, spaces left out."""
    return _STUCK.search("".join(words)) is not None


def longest_run(words: tuple[str, ...], length: int) -> Run:
    """Return the phrase of ``length`` words that stands most often in a row; () and 0 where there are too few words."""
    best = Run((), 0)
    for start in range(len(words) - length + 1):
        phrase, times = words[start : start + length], 1
        while words[start + times * length : start + (times + 1) * length] == phrase:
            times += 1
        best = max(best, Run(phrase, times), key=lambda run: run.times)
    return best


def failure_figures(failures: Sequence[Failure | None]) -> FailureFigures:
    """Count what `failure_of` says of each utterance."""
    silence, inserted, unrelated = (failures.count(kind) for kind in ("silence", "inserted", "unrelated"))
    return FailureFigures(
        repetitions=failures.count("repetition"),
        hallucinations=silence + inserted + unrelated,
        silence=silence,
        inserted=inserted,
        unrelated=unrelated,
        utterances=len(failures),
    )

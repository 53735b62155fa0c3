"""What the page shows of the figures: headline tiles, charts by group, alignments word by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from visionpeft.evaluation.page import Chart, Tile, spell_bytes
from visionpeft.evaluation.row_charts import Row, interval_chart
from visionpeft.evaluation.speech.about import SpeechRunAbout
from visionpeft.evaluation.speech.bootstrap import Interval
from visionpeft.evaluation.speech.figures import Case, SpeechFigures
from visionpeft.evaluation.speech.groups import Group
from visionpeft.evaluation.speech.rates import Rate

NORMALISED = {
    "raw": ("as they are", "Capitals and punctuation count."),
    "whisper": ("by Whisper's normaliser", "As in Whisper's paper; outside English every mark is taken away."),
    "marks": ("without capitals and punctuation", "Every letter, mark and number counts."),
}
"""Normalisation -> its name on the page, and what it does."""

FAILURES = {
    "repetition": "repetition: a phrase again and again",
    "silence": "hallucination: nothing was said",
    "inserted": "hallucination: many words that nobody said",
    "unrelated": "hallucination: something else altogether",
}
"""Failure -> what the page calls it."""

_MOST_BARS, _MOST_PIECES = 15, 150


class Piece(NamedTuple):
    """One column of an alignment: a word that was said over the word that was written."""

    kind: str
    said: str
    written: str


@dataclass(frozen=True)
class ShownCase:
    """A worst case with its sound; ``more`` words of its alignment are not shown."""

    case: Case
    sound: str
    failure: str
    pieces: list[Piece]
    more: int


def percent(value: float | None) -> str:
    """Return "12.3 %" for 0.123, "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def between(interval: Interval | None) -> str:
    """Return "10.2 to 14.8 %"; "" where there is none."""
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def tiles(figures: SpeechFigures, about: SpeechRunAbout, bare: SpeechFigures | None = None) -> list[Tile]:
    """Return the headline figures that were measured, beside those of the base alone where they were."""
    wer, level = figures.main.wer, f"{100 * figures.level:g} % of resamples"
    words = f"{wer.substitutions:,} exchanged, {wer.deletions:,} left out, {wer.insertions:,} put in, of {wer.total:,}."
    letters = "The same of letters: half a word counts half."
    before = (percent(bare.main.wer.rate), percent(bare.main.cer.rate)) if bare else ("", "")
    found = [
        _rate_tile("Word error rate", wer, _beside(before[0]) + words, level),
        _rate_tile("Character error rate", figures.main.cer, _beside(before[1]) + letters, level),
        *_term_tiles(figures, level, bare),
        _failure_tile(figures, bare),
    ]
    if figures.real_time_factor is not None:
        took = f"{figures.wall_seconds:.1f} s, loading not counted."
        meaning = f"{figures.audio_seconds / 60:.1f} min of speech were written down in {took}"
        found.append(Tile("Real-time factor", f"{figures.real_time_factor:.3g}", meaning))
    if about.trainable_parameters and about.total_parameters:
        size = f" One file of {spell_bytes(about.adapter_bytes)}." if about.adapter_bytes else ""
        numbers = f"{about.trainable_parameters:,} of {about.total_parameters:,} numbers.{size}"
        found.append(Tile("Trained", f"{100 * about.trainable_parameters / about.total_parameters:.3g} %", numbers))
    return found


def _beside(value: str) -> str:
    """The base's own figure, as the beginning of a tile's sentences."""
    return f"The base alone: {value}. " if value else ""


def _rate_tile(label: str, rate: Rate, meaning: str, level: str) -> Tile:
    return _share_tile(label, rate.rate, rate.interval, meaning, level)


def _share_tile(label: str, value: float | None, interval: Interval | None, meaning: str, level: str) -> Tile:
    low, high = interval or (None, None)
    spelt = f"{between(interval)} with other utterances ({level})" if interval else ""
    return Tile(label, percent(value), meaning, value, ("0", "100 %"), low=low, high=high, interval=spelt)


def _term_tiles(figures: SpeechFigures, level: str, bare: SpeechFigures | None) -> list[Tile]:
    terms = figures.terms
    if terms is None:
        return []
    whole, written = terms.overall, f"{terms.overall.hits:,} of the {terms.overall.written:,} written were said."
    before = bare.terms.overall if bare and bare.terms else None
    recall = f"{whole.hits:,} of {whole.said:,} were written as they were said."
    if before:
        recall, written = _beside(percent(before.recall)) + recall, _beside(percent(before.precision)) + written
    return [
        _share_tile("Domain terms, recall", whole.recall, terms.recall_interval, recall, level),
        _share_tile("Domain terms, precision", whole.precision, terms.precision_interval, written, level),
    ]


def _failure_tile(figures: SpeechFigures, bare: SpeechFigures | None) -> Tile:
    found = figures.failures
    failed = found.hallucinations + found.repetitions
    before = f"{bare.failures.hallucinations + bare.failures.repetitions:,}" if bare else ""
    meaning = f"{found.hallucinations:,} hallucinations and {found.repetitions:,} repetitions in {found.utterances:,}."
    return Tile("Failed utterances", f"{failed:,}", _beside(before) + meaning, good=not failed)


def group_chart(name: str, groups: Sequence[Group], figures: SpeechFigures) -> Chart | None:
    """Return the word error rates of a column's values with intervals; None where they do not fit a chart."""
    rates = [rate for group in groups for rate in (group.wer.rate, *(group.wer.interval or ())) if rate is not None]
    whole = figures.main.wer.rate
    if not rates or max(rates) > 1 or len(groups) > _MOST_BARS or whole is None:
        return None
    rows = [
        Row(group.value, group.wer.rate, *(group.wer.interval or (None, None)), faint=group.utterances < 10)
        for group in groups
    ]
    svg = interval_chart(f"Word error rate by {name}", rows, level=("all", whole))
    return Chart(f"Word error rate by {name}", "Pale where fewer than 10 utterances tell.", svg) if svg else None


def shown_case(case: Case, sound: str) -> ShownCase:
    """Return a worst case as the page shows it."""
    pieces = pieces_of(case)
    return ShownCase(
        case, sound, FAILURES.get(case.failure or "", ""), pieces[:_MOST_PIECES], max(len(pieces) - _MOST_PIECES, 0)
    )


def pieces_of(case: Case) -> list[Piece]:
    """Return an alignment word by word."""
    found: list[Piece] = []
    for kind, said, written in case.steps:
        left, right = said.split(), written.split()
        count = max(len(left), len(right))
        left, right = left or [""] * count, right or [""] * count
        found += [Piece(kind, *pair) for pair in zip(left, right, strict=True)]
    return found

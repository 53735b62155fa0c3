"""The same rates for parts of the utterances: by speaker, accent, or any other column, and by length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from visionpeft.errors import ConfigError, did_you_mean
from visionpeft.evaluation.speech.bootstrap import Interval
from visionpeft.evaluation.speech.rates import Draw, Errors, Rate
from visionpeft.evaluation.speech.terms import TermCounts
from visionpeft.evaluation.speech.transcripts import Transcripts

LENGTH = "length"
"""The name of the column of length classes."""

MOST_VALUES = 50
"""A column of more values is left out where the settings name none: it is a name, not a group."""


class Group(BaseModel):
    """Utterances that share a value of a column.

    Attributes:
        value: the value.
        utterances: how many.
        seconds: of sound.
        wer: word error rate.
        cer: character error rate.
        term_recall: share of the said terms that were written; None without terms.
        term_interval: where it lies with other utterances.
    """

    model_config = ConfigDict(frozen=True)

    value: str
    utterances: int
    seconds: float
    wer: Rate
    cer: Rate
    term_recall: float | None
    term_interval: Interval | None


def columns_of(
    transcripts: Transcripts, wanted: Sequence[str] | None, edges: Sequence[float]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the columns to report by, and the names of those that were left out.

    Args:
        transcripts: with their columns; the length class comes last, unless they have a column of that name.
        wanted: the columns by name; None takes all of 2 to 50 values.
        edges: where length classes meet, in seconds.

    Raises:
        ConfigError: there is no such column.
    """
    there = {**transcripts.columns}
    there.setdefault(LENGTH, tuple(length_class(seconds, edges) for seconds in transcripts.audio_seconds))
    if wanted is not None:
        check_columns(wanted, there)
        return {name: there[name] for name in wanted}, []
    kept = {name: values for name, values in there.items() if 2 <= len(set(values)) <= MOST_VALUES}
    return kept, [name for name, values in there.items() if len(set(values)) > MOST_VALUES]


def check_columns(wanted: Sequence[str], there: Collection[str]) -> None:
    """Refuse columns to report by that are not ``there``.

    Raises:
        ConfigError: there is no such column.
    """
    for name in wanted:
        if name not in there:
            raise ConfigError(f"no column '{name}' to report by: {', '.join(there)}.{did_you_mean(name, there)}")


def length_class(seconds: float, edges: Sequence[float]) -> str:
    """Return "under 2 s", "2 to 5 s" or "20 s and more"; the edge belongs to the longer class."""
    above = [edge for edge in edges if seconds < edge]
    below = [edge for edge in edges if seconds >= edge]
    if not below:
        return f"under {above[0]:g} s" if above else "any"
    return f"{below[-1]:g} to {above[0]:g} s" if above else f"{below[-1]:g} s and more"


def groups_of(
    name: str,
    values: Sequence[str],
    transcripts: Transcripts,
    errors: Mapping[str, Errors],
    terms: TermCounts | None,
    draw: Draw,
) -> tuple[Group, ...]:
    """Return the figures of each value of a column, the highest word error rate first; length classes by length.

    Args:
        name: of the column.
        values: [n], of each utterance.
        transcripts: the utterances.
        errors: "wer" and "cer" of each utterance.
        terms: occurrences of domain terms; None without.
        draw: how intervals are drawn.
    """
    column, seconds = np.array(values, object), np.array(transcripts.audio_seconds)
    found: list[Group] = []
    for value in sorted(set(values)):
        chosen = np.asarray(column == value, bool)
        said = terms.said[chosen].sum(axis=1) if terms else np.zeros(0, np.int64)
        hits = terms.hits[chosen].sum(axis=1) if terms else said
        found.append(
            Group(
                value=value,
                utterances=int(chosen.sum()),
                seconds=float(seconds[chosen].sum()),
                wer=errors["wer"].of(chosen).rate(draw),
                cer=errors["cer"].of(chosen).rate(draw),
                term_recall=float(hits.sum() / said.sum()) if said.any() else None,
                term_interval=draw.interval(hits, said) if said.any() else None,
            )
        )
    by_length = name == LENGTH and name not in transcripts.columns
    return tuple(sorted(found, key=lambda one: one.seconds / one.utterances if by_length else -(one.wer.rate or 0.0)))

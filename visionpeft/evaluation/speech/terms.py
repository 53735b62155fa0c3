"""Recall and precision of domain terms: the words for which a model is adapted, of one word or several.

Texts and terms are compared with marks kept (`normalise.with_marks`). The longest term wins where several begin at a
word, and no word belongs to two: "acetylsalicylic acid" is not "acid" as well. In each utterance a term is hit as often
as both texts hold it: ``min(times said, times written)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from visionpeft.errors import ConfigError, DataError
from visionpeft.evaluation.speech.bootstrap import Interval
from visionpeft.evaluation.speech.normalise import with_marks
from visionpeft.evaluation.speech.rates import Counts, Draw

Words = tuple[str, ...]
_MOST_BYTES = 1 << 24


class TermFigures(BaseModel):
    """One term, or all together.

    Attributes:
        term: as it was given.
        said: times in what was said.
        written: times in what was written down.
        hits: times in both, utterance by utterance.
        recall: hits by said; None where it was never said.
        precision: hits by written; None where it was never written.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    term: str
    said: int
    written: int
    hits: int
    recall: float | None
    precision: float | None


class TermsFigures(BaseModel):
    """All terms.

    Attributes:
        overall: all occurrences of all terms together.
        recall_interval: where the recall lies with other utterances; None where not measured.
        precision_interval: the same of the precision.
        by_term: each term that was said or written, those with most misses first.
        unused: terms that were neither said nor written.
    """

    model_config = ConfigDict(frozen=True)

    overall: TermFigures
    recall_interval: Interval | None
    precision_interval: Interval | None
    by_term: tuple[TermFigures, ...]
    unused: tuple[str, ...]


def read_terms(path: Path) -> tuple[str, ...]:
    """Return the terms of a text file, one a line; empty lines and those that begin with # do not count.

    Raises:
        DataError: it cannot be read, is no text, or holds no term.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: expected a list of terms, one a line.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of terms that can be read: {error}") from error
    terms = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not terms:
        raise DataError(f"{path} holds no terms: expected one a line.")
    return terms


def term_table(terms: Iterable[str]) -> dict[Words, str]:
    """Return words -> term as it was given.

    Raises:
        ConfigError: a term without a letter, or two that are the same when compared.
    """
    table: dict[Words, str] = {}
    for term in terms:
        words = tuple(with_marks(term).split())
        if not words:
            raise ConfigError(f"the term '{term}' has no letters and no digits.")
        if words in table:
            raise ConfigError(f"the terms '{table[words]}' and '{term}' are the same when compared: leave one out.")
        table[words] = term
    return table


def occurrences(text: str, table: Mapping[Words, str]) -> Counter[str]:
    """Return how often each term stands in a text, from the left, the longest first, no word twice."""
    words, found, place = with_marks(text).split(), Counter[str](), 0
    longest = max(map(len, table), default=0)
    while place < len(words):
        here = (tuple(words[place : place + length]) for length in range(longest, 0, -1))
        hit = next((part for part in here if part in table), None)
        if hit is not None:
            found[table[hit]] += 1
        place += len(hit) if hit is not None else 1
    return found


class TermCounts:
    """How often terms were said, written and both, by utterance and term: [n, terms] each."""

    def __init__(self, references: Sequence[str], hypotheses: Sequence[str], terms: Sequence[str]) -> None:
        table = term_table(terms)
        self.terms = tuple(table.values())
        self.said = self._counted(references, table)
        self.written = self._counted(hypotheses, table)
        self.hits = np.minimum(self.said, self.written)

    def _counted(self, texts: Sequence[str], table: Mapping[Words, str]) -> Counts:
        rows = [occurrences(text, table) for text in texts]
        return np.array([[row[term] for term in self.terms] for row in rows], np.int64).reshape(len(rows), -1)

    def figures(self, draw: Draw) -> TermsFigures:
        """Return recall and precision, of each term and of all together."""
        tables = (self.said, self.written, self.hits)
        said, written, hits = (table.sum(axis=1) for table in tables)
        sums = zip(self.terms, *(table.sum(axis=0).tolist() for table in tables), strict=True)
        rows = [_figures(*row) for row in sums]
        used = [row for row in rows if row.said or row.written]
        return TermsFigures(
            overall=_figures("", int(said.sum()), int(written.sum()), int(hits.sum())),
            recall_interval=draw.interval(hits, said) if said.any() else None,
            precision_interval=draw.interval(hits, written) if written.any() else None,
            by_term=tuple(sorted(used, key=lambda row: (row.hits - row.said, row.hits - row.written, row.term))),
            unused=tuple(row.term for row in rows if not row.said and not row.written),
        )


def _figures(term: str, said: int, written: int, hits: int) -> TermFigures:
    return TermFigures(
        term=term,
        said=said,
        written=written,
        hits=hits,
        recall=hits / said if said else None,
        precision=hits / written if written else None,
    )

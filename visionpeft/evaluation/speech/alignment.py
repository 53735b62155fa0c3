"""Which word, or letter, of one text stands for which of another: the alignment of fewest edits, by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from visionpeft.errors import MissingExtraError

Kind = Literal["equal", "substitute", "delete", "insert"]


class Step(NamedTuple):
    """A stretch of an alignment: words that are equal, exchanged one by one, left out, or put in."""

    kind: Kind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


Alignment = tuple[Step, ...]


def aligned_words(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """Return the alignment of each pair of texts, word by word; words are apart by spaces.

    Raises:
        MissingExtraError: jiwer is not installed.
    """
    return _aligned(references, hypotheses, "process_words")


def aligned_characters(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """Return the alignment of each pair of texts, character by character; a space is a character.

    Raises:
        MissingExtraError: jiwer is not installed.
    """
    return _aligned(references, hypotheses, "process_characters")


def _aligned(references: Sequence[str], hypotheses: Sequence[str], function: str) -> list[Alignment]:
    if not references:
        return []
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("Error rates need jiwer: pip install 'visionpeft[speech]'.") from error
    found: Any = getattr(jiwer, function)(list(references), list(hypotheses))
    rows = zip(found.references, found.hypotheses, found.alignments, strict=True)
    return [
        tuple(
            Step(
                chunk.type,
                tuple(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
                tuple(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
            )
            for chunk in chunks
        )
        for reference, hypothesis, chunks in rows
    ]

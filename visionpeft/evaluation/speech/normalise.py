"""Texts made comparable, three ways, because each hides something else.

- ``raw`` changes nothing but white space: capitals and punctuation count as errors.
- ``whisper`` is what Whisper's paper reports (arXiv:2212.04356, appendix C): for English its English normaliser, which
  spells out contractions and writes numbers as digits, for other languages its basic one, which takes away every mark:
  the vowel signs and viramas of Indic scripts, so that different words become one.
- ``marks`` takes away capitals and punctuation and keeps every letter, mark and number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal, get_args

import regex

Normalisation = Literal["raw", "whisper", "marks"]
Normaliser = Callable[[str], str]

NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
LETTERS_ARE_WORDS = ("zh", "ja", "th", "lo", "my", "yue")
"""Languages written without spaces between words: their letters count as words, as in Whisper's paper."""

_APOSTROPHE = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}](?=\w)")


def normaliser(name: Normalisation, language: str | None = None) -> Normaliser:
    """Return the function that makes texts comparable; words are then apart by single spaces.

    Args:
        name: "raw", "whisper" or "marks".
        language: of the texts, as Whisper's code of it: "en", "mr", …; None where it is not known.
    """
    apart = language in LETTERS_ARE_WORDS
    if name == "raw":
        return _single_spaces
    if name == "marks":
        return lambda text: _letters(with_marks(text)) if apart else with_marks(text)
    return _whisper(language, apart=apart)


def with_marks(text: str) -> str:
    """Return a text in small letters without punctuation; letters, combining marks and numbers stay.

    Compatible forms become one (NFKC), an apostrophe within a word goes ("don't" is "dont"), and so do the invisible
    joiners of Indic and Arabic scripts.
    """
    plain = _APOSTROPHE.sub("", unicodedata.normalize("NFKC", text).lower())
    kept = (_kept(character) for character in plain)
    return _single_spaces(unicodedata.normalize("NFC", "".join(kept)))


def _kept(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] in "LMN":
        return character
    return "" if category == "Cf" else " "


def _whisper(language: str | None, *, apart: bool) -> Normaliser:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    found = EnglishTextNormalizer({}) if language == "en" else BasicTextNormalizer(split_letters=apart)
    return lambda text: _single_spaces(found(text))


def _letters(text: str) -> str:
    return " ".join(regex.findall(r"\X", text.replace(" ", "")))


def _single_spaces(text: str) -> str:
    return " ".join(text.split())

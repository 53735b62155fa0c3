from __future__ import annotations

import unicodedata

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from visionpeft.evaluation.speech.normalise import normaliser, with_marks

MARATHI = "मराठी भाषा, पुणे!"


def test_raw_changes_white_space_alone():
    assert normaliser("raw")("  Well,\n\tDon't ") == "Well, Don't"


@pytest.mark.parametrize("text", ["Mr. O'Neil's colour isn't 25%", "they're (laughs) twenty five", "[noise] I'm"])
def test_whisper_is_transformers_normaliser(text):
    assert normaliser("whisper", "en")(text) == " ".join(EnglishTextNormalizer({})(text).split())
    assert normaliser("whisper", "de")(text) == " ".join(BasicTextNormalizer()(text).split())


def test_marks_keeps_vowel_signs_and_viramas_that_whisper_takes_away():
    signs = [character for character in MARATHI if unicodedata.category(character)[0] == "M"]
    kept = [character for character in with_marks(MARATHI) if unicodedata.category(character)[0] == "M"]
    assert len(signs) >= 5
    assert kept == signs
    assert not any(unicodedata.category(character)[0] == "M" for character in normaliser("whisper", "mr")(MARATHI))


def test_marks_drops_capitals_and_punctuation_and_keeps_words_in_brackets():
    assert (
        with_marks("“Well,” she DON\N{RIGHT SINGLE QUOTATION MARK}T (say) [this] \N{EN DASH} 3.5 mg!")
        == "well she dont say this 3 5 mg"
    )


def test_marks_equalises_composed_and_decomposed_letters_and_invisible_joiners():
    assert with_marks("e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}") == with_marks("été") == "été"
    assert with_marks("क्\N{ZERO WIDTH JOINER}ष") == with_marks("क्ष")


def test_letters_are_words_where_there_are_no_spaces():
    assert normaliser("marks", "zh")("你好。 嗎") == "你 好 嗎"
    assert normaliser("whisper", "zh")("你好") == "你 好"
    assert normaliser("marks", "th")("กี่") == "กี่"  # marks stay with their letter

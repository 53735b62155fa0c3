"""The bench's sentences: every term in the test, none of its sentences in training."""

import numpy as np

from scripts.bench.speech import digits_of
from scripts.bench.speech_dictation import GROUPS, PROCEDURES, TERMS, TEST, VALIDATION, sentences


def test_every_term_is_tested_and_trained_in_other_sentences() -> None:
    texts = sentences(200, np.random.default_rng(0))
    assert len(set(texts)) == 200
    assert len(TERMS) == len(set(TERMS)) == 60
    tested, trained = ([text.lower().rstrip(".") for text in part] for part in (texts[:60], texts[80:]))
    for term in TERMS:
        assert any(term in text.split() for text in tested)
        assert any(term in text.split() for text in trained)
    assert not set(tested) & set(trained)
    assert not {"the", "a"} & set(PROCEDURES)


def test_voices_of_the_test_are_in_no_group() -> None:
    groups = [set(map(str, voices)) for voices in GROUPS.values()]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & set(map(str, TEST + VALIDATION))


def test_digits_are_compared_one_by_one() -> None:
    assert digits_of("Seven, two 5") == digits_of("7-25.") == "7 2 5"
    assert digits_of("seven new") == "7 new"

from __future__ import annotations

import pytest

from visionpeft.evaluation.speech.alignment import aligned_words
from visionpeft.evaluation.speech.failures import Run, failure_figures, failure_of, longest_run, repeated, strangeness


def failure(said: str, written: str) -> str | None:
    (words,) = aligned_words([said], [written])
    return failure_of(words, strangeness([said], [written])[0])


@pytest.mark.parametrize(
    ("said", "written", "expected"),
    [
        ("the heart is fine", "the heart is fine", None),
        ("the heart is fine", "the hart was fine", None),
        ("the heart is fine", "the heart is fine fine fine", "repetition"),
        ("no no no", "no no no", None),
        ("no no no", "no no no no", None),
        ("no no no", "no no no no no", "repetition"),
        ("good morning", "good morning how are you how are you how are you", "repetition"),
        ("8 1 0", "a10a10a10a10a10a10a10a10a10a10a10a10", "repetition"),
        ("one million", "1000000", None),
        ("aaaaaaaaaaaaa", "aaaaaaaaaaaa", None),
        ("", "", None),
        ("", "thank you", "silence"),
        ("", "you you you you", "repetition"),
        ("good morning", "good morning and thanks for watching today", "inserted"),
        ("good morning", "good morning and thanks for that", None),
        ("the heart is fine", "subscribe to my channel now", "unrelated"),
        ("yes", "yes that is right", None),
    ],
)
def test_failures_are_as_defined(said, written, expected):
    assert failure(said, written) == expected


def test_the_least_strange_normalisation_counts():
    (words,) = aligned_words(["six five one zero"], ["6 5 1 0"])
    assert failure_of(words, strangeness(["six five one zero"], ["6 5 1 0"])[0]) == "unrelated"
    assert failure_of(words, strangeness(["6510"], ["6 5 1 0"])[0]) is None


def test_what_was_said_again_and_again_is_no_repetition_however_it_is_spelt():
    assert repeated(["six"] * 4, ["6"] * 4) is None
    assert repeated(["six"] * 4, ["6"] * 6) == Run(("6",), 6)


def test_strangeness_is_the_share_of_wrong_letters():
    assert strangeness(["a b", "", "abcd"], ["ab", "", "abxyz"]) == pytest.approx([0.0, 0.0, 3 / 5])


def test_the_longest_run_of_a_length():
    words = ("a", "b", "a", "b", "a", "b", "b")
    assert longest_run(words, 2) == Run(("a", "b"), 3)
    assert longest_run(words, 1) == Run(("b",), 2)
    assert longest_run(words, 9) == Run((), 0)


def test_counts_add_up():
    found = failure_figures(["repetition", None, "silence", "unrelated", "inserted", "silence"])
    assert (found.repetitions, found.hallucinations, found.silence, found.utterances) == (1, 4, 2, 6)

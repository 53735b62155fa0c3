from __future__ import annotations

import jiwer
import numpy as np
import pytest

from tests.evaluation.speech.cases import random_transcripts
from visionpeft.evaluation.speech.alignment import Step, aligned_characters, aligned_words
from visionpeft.evaluation.speech.bootstrap import rate_interval
from visionpeft.evaluation.speech.rates import Draw, errors_of

DRAW = Draw(resamples=0, level=0.95, seed=0)


def test_the_alignment_says_word_by_word_what_became_of_it():
    (steps,) = aligned_words(["a b c d f g"], ["a x d f g e"])
    assert steps == (
        Step("equal", ("a",), ("a",)), Step("substitute", ("b",), ("x",)), Step("delete", ("c",), ()),
        Step("equal", ("d", "f", "g"), ("d", "f", "g")), Step("insert", (), ("e",)),
    )  # fmt: skip


def test_the_rates_are_jiwers():
    made = random_transcripts(1)
    said, written = list(made.references), list(made.hypotheses)
    words = errors_of(aligned_words(said, written)).rate(DRAW)
    letters = errors_of(aligned_characters(said, written)).rate(DRAW)
    assert words.rate == pytest.approx(jiwer.wer(said, written), abs=1e-12)
    assert letters.rate == pytest.approx(jiwer.cer(said, written), abs=1e-12)
    out = jiwer.process_words(said, written)
    assert (words.substitutions, words.deletions, words.insertions) == (
        out.substitutions, out.deletions, out.insertions,
    )  # fmt: skip


def test_nothing_said_has_no_rate_and_its_words_count_as_insertions():
    alone = errors_of(aligned_words([""], ["thank you"])).rate(DRAW)
    assert alone.rate is None
    assert alone.insertions == 2
    both = errors_of(aligned_words(["", "a b"], ["thank you", "a b"])).rate(DRAW)
    assert both.rate == 1.0


def test_the_interval_is_that_of_drawing_utterances():
    rng = np.random.default_rng(3)
    totals = rng.integers(1, 12, 60)
    errors = rng.binomial(totals, 0.3)
    low, high = rate_interval(errors, totals, resamples=4000, level=0.9, seed=1)
    drawn = rng.integers(0, 60, (4000, 60))
    rates = errors[drawn].sum(axis=1) / totals[drawn].sum(axis=1)
    assert [low, high] == pytest.approx(np.quantile(rates, [0.05, 0.95]), abs=0.01)


def test_the_interval_depends_on_the_seed_alone(monkeypatch):
    errors, totals = np.array([0, 1, 2, 0]), np.array([3, 4, 5, 6])
    whole = rate_interval(errors, totals, resamples=200, level=0.95, seed=5)
    monkeypatch.setattr("visionpeft.evaluation.speech.bootstrap._CELLS", 40)
    assert rate_interval(errors, totals, resamples=200, level=0.95, seed=5) == whole
    assert rate_interval(errors, totals, resamples=200, level=0.95, seed=6) != whole
    assert rate_interval(errors[:1], totals[:1], resamples=200, level=0.95, seed=5) is None
    assert rate_interval(errors, totals, resamples=0, level=0.95, seed=5) is None

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from visionpeft.errors import ConfigError, DataError
from visionpeft.evaluation.speech.rates import Draw
from visionpeft.evaluation.speech.terms import TermCounts, occurrences, read_terms, term_table

DRAW = Draw(resamples=100, level=0.95, seed=0)
TERMS = ("acid", "acetylsalicylic acid", "Metformin", "coronary artery bypass")


def test_the_longest_term_wins_and_no_word_belongs_to_two():
    table = term_table(TERMS)
    found = occurrences("Acetylsalicylic acid, acid; METFORMIN. Coronary artery.", table)
    assert found == Counter({"acetylsalicylic acid": 1, "acid": 1, "Metformin": 1})


def test_recall_and_precision_count_what_both_texts_hold():
    said = ["metformin and metformin", "acetylsalicylic acid", "nothing"]
    written = ["metformin and met form in", "acetyl salicylic acid", "metformin"]
    figures = TermCounts(said, written, TERMS).figures(DRAW)
    by_term = {row.term: row for row in figures.by_term}
    assert (by_term["Metformin"].said, by_term["Metformin"].written, by_term["Metformin"].hits) == (2, 2, 1)
    assert by_term["acetylsalicylic acid"].recall == 0
    assert by_term["acetylsalicylic acid"].precision is None
    assert by_term["acid"].recall is None
    assert by_term["acid"].precision == 0
    assert figures.overall.recall == pytest.approx(1 / 3)
    assert figures.overall.precision == pytest.approx(1 / 3)
    assert figures.unused == ("coronary artery bypass",)
    assert [row.term for row in figures.by_term][-1] == "acid"  # those with misses come first


def test_a_perfect_transcript_has_all_of_both():
    said = ["coronary artery bypass", "acid"]
    figures = TermCounts(said, said, TERMS).figures(DRAW)
    assert figures.overall.recall == figures.overall.precision == 1.0
    assert figures.recall_interval == (1.0, 1.0)


def test_counts_stand_by_utterance_and_term():
    counts = TermCounts(["acid acid", ""], ["acid", "acid"], TERMS)
    assert counts.said.shape == (2, 4)
    assert np.array_equal(counts.hits[:, 0], [1, 0])


def test_terms_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ConfigError, match="'Acid' and 'acid!' are the same"):
        term_table(["Acid", "acid!"])
    with pytest.raises(ConfigError, match="no letters"):
        term_table(["--"])


def test_a_list_of_terms_is_read_line_by_line(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("\ufeff# drugs\nmetformin\n\n  heart catheter \n", encoding="utf-8")
    assert read_terms(path) == ("metformin", "heart catheter")
    path.write_text("# none\n")
    with pytest.raises(DataError, match=r"terms\.txt holds no terms"):
        read_terms(path)
    with pytest.raises(DataError, match=r"gone\.txt"):
        read_terms(tmp_path / "gone.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no list of terms"):
        read_terms(path)

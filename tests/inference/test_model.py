"""What is said of thresholds before anything is predicted."""

from __future__ import annotations

import pytest

from visionpeft.inference.about import ClassifierAbout
from visionpeft.inference.model import Options, threshold_words
from visionpeft.models.preprocess import Preprocessing

HELD = {"size": (32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def about(kind: str, **thresholds: float) -> ClassifierAbout:
    return ClassifierAbout(labels=("a", "b"), preprocessing=Preprocessing(**HELD), kind=kind, thresholds=thresholds)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_where_the_likeliest_is_the_answer_there_is_none(kind: str):
    assert threshold_words(about(kind, a=0.3), Options(tta=True)) == ""


def test_each_label_has_its_own():
    line = threshold_words(about("multilabel", a=0.25, b=0.75), Options())
    assert line == "threshold a 0.25, b 0.75: the adapter's, as its training left it"


def test_none_that_was_chosen_is_a_half():
    assert threshold_words(about("binary"), Options()).startswith("threshold 0.5: ")


def test_mirrored_pictures_are_not_those_that_it_was_chosen_on():
    line = threshold_words(about("binary", b=0.25), Options(tta=True))
    assert "on pictures seen once and whole; --tta may shift scores" in line
    assert threshold_words(about("binary", b=0.25), Options(0.1, tta=True)) == "threshold 0.1, as given by --threshold"

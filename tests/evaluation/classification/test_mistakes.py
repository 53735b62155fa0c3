from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.classification.made import made
from visionpeft.evaluation.classification.mistakes import mistakes
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.statistics import Scored


def case(probabilities: list[list[float]], targets, kind, threshold: float = 0.5) -> Scored:
    p = np.array(probabilities)
    logits = np.log(p / (1 - p)) if kind == "multilabel" else np.log(p)
    names = tuple(f"{row}.png" for row in range(len(p)))
    given = Predictions(names, logits, np.array(targets), ("x", "y", "z")[: p.shape[1]], kind)
    return Scored(given, np.full(len(given.asked), threshold))


def test_worst_and_most_confident_are_not_the_same():
    scored = case(
        [[0.98, 0.01, 0.01], [0.5, 0.495, 0.005], [0.9, 0.05, 0.05], [0.6, 0.2, 0.2]], [0, 2, 1, 1], "multiclass"
    )
    found = mistakes(scored, 2)
    assert list(found) == ["Worst errors", "Most confident errors"]
    assert [mistake.row for mistake in found["Worst errors"]] == [1, 2]
    assert [mistake.row for mistake in found["Most confident errors"]] == [2, 3]
    worst = found["Worst errors"][0]
    assert (worst.name, worst.truth, worst.said, worst.label) == ("1.png", "z", "x (50.0 %)", 0)


def test_of_two_classes_both_lists_are_one_and_the_threshold_decides():
    scored = case([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]], [0, 0, 0], "binary", threshold=0.3)
    found = mistakes(scored, 5)
    assert list(found) == ["Worst errors, which are also the most confident"]
    (errors,) = found.values()
    assert [(mistake.row, mistake.said, mistake.label) for mistake in errors] == [
        (2, "y (80.0 %)", 1),
        (0, "y (40.0 %)", 1),
    ]


def test_every_wrong_label_is_named_and_the_surest_is_explained():
    scored = case([[0.9, 0.2, 0.55], [0.9, 0.1, 0.1]], [[1, 1, 0], [1, 0, 0]], "multilabel")
    ((mistake,),) = mistakes(scored, 5).values()
    assert (mistake.truth, mistake.said, mistake.label) == ("x, y", "not y (20.0 %), z (55.0 %)", 1)
    nothing = case([[0.9, 0.2, 0.1]], [[0, 0, 0]], "multilabel")
    assert next(iter(mistakes(nothing, 1).values()))[0].truth == "none of the labels"


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal", "multilabel"])
def test_only_errors_are_shown_and_no_more_than_asked_for(kind):
    given = made(kind, 80)
    scored = Scored(given, np.full(len(given.asked), 0.5))
    for errors in mistakes(scored, 6).values():
        assert len(errors) == 6
        for mistake in errors:
            row = mistake.row
            right = (
                (scored.answers[row] == scored.truth[row]).all()
                if kind == "multilabel"
                else scored.decided[row] == given.targets[row]
            )
            assert not right
    assert mistakes(scored, 0) == {}


def test_no_errors_no_lists():
    assert mistakes(case([[0.9, 0.1]], [0], "binary"), 5) == {}

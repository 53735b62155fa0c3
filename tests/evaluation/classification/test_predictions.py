from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.evaluation.classification.made import KINDS, made
from visionpeft.errors import DataError
from visionpeft.evaluation.classification.predictions import Predictions


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_torchs(kind):
    given = made(kind)
    logits = torch.from_numpy(given.logits)
    expected = logits.sigmoid() if kind == "multilabel" else logits.softmax(dim=1)
    np.testing.assert_allclose(given.probabilities, expected.numpy(), atol=1e-12)
    np.testing.assert_allclose(np.exp(given.log_probabilities), given.probabilities, atol=1e-12)
    asked = given.probabilities[:, given.asked]
    np.testing.assert_allclose(given.scores, np.log(asked) - np.log1p(-asked), atol=1e-9)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_equal_probabilities_have_equal_scores(kind):
    logits = np.array([[0.1, 0.7, 0.2], [1.1, 1.7, 1.2], [0.2, 0.7, 0.1]]) * 3
    given = Predictions(("a", "b", "c"), logits.round(6), np.array([0, 1, 2]), ("x", "y", "z"), kind)
    assert given.scores[2, 1] == given.scores[0, 1]


def good() -> dict:
    return {
        "names": ("a", "b"), "logits": np.zeros((2, 2)), "targets": np.array([0, 1]), "labels": ("no", "yes"),
        "kind": "binary", "columns": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"labels": ("a",), "logits": np.zeros((2, 1))}, "at least two labels"),
        ({"labels": ("a", "b", "c"), "logits": np.zeros((2, 3))}, "a binary task has 2 labels, not 3"),
        ({"names": (), "logits": np.zeros((0, 2)), "targets": np.zeros(0, int)}, "no predictions"),
        ({"logits": np.zeros((2, 3))}, r"expected \(2, 2\)"),
        ({"targets": np.zeros((2, 2), int)}, r"targets have the shape \(2, 2\)"),
        ({"columns": {"site": ("x",)}}, "column 'site' has 1 values for 2"),
        ({"logits": np.array([[0, 0], [np.nan, 0]])}, "logits of 'b' are not finite"),
        ({"targets": np.array([0, 2])}, "target of 'b' is 2: expected 0 to 1"),
        ({"targets": np.array([-1, 1])}, "target of 'a' is -1"),
    ],
)
def test_what_does_not_fit_is_named(fault, says):
    Predictions(**good())
    with pytest.raises(DataError, match=says):
        Predictions(**(good() | fault))


def test_a_missing_column_is_named_with_the_nearest():
    with pytest.raises(DataError, match=r"no column 'sites'.*Did you mean 'site'"):
        made("binary").column("sites")

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tests.evaluation.classification.made import made
from visionpeft.errors import DataError
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.classification.subgroups import subgroup_table

QUICK = ReportConfig(resamples=40)


def with_column(given: Predictions, values: list[str]) -> Predictions:
    return Predictions(given.names, given.logits, given.targets, given.labels, given.kind, {"c": tuple(values)})


def table(values: list[str], **settings):
    given = with_column(made("binary", len(values)), values)
    return subgroup_table(given, np.array([0.5]), "c", QUICK.model_copy(update=settings))


def test_each_value_is_measured_alone():
    given = made("binary", 150)
    found = subgroup_table(given, np.array([0.4]), "site", QUICK)
    assert [group.name for group in found.groups] == ["x", "y", "z"]
    for group in found.groups:
        rows = [row for row, site in enumerate(given.columns["site"]) if site == group.name]
        truth, chance = given.targets[rows], given.probabilities[rows, 1]
        assert group.count == len(rows)
        assert group.counts == {"A": int((truth == 0).sum()), "B": int(truth.sum())}
        assert group.figures["auc"].value == pytest.approx(roc_auc_score(truth, chance))
        assert group.figures["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(truth, chance >= 0.4))
        assert group.figures["auc"].low <= group.figures["auc"].value <= group.figures["auc"].high


def test_groups_are_largest_first_unknown_last_and_small_ones_marked():
    found = table(["b"] * 10 + ["a"] * 40 + [""] * 35 + [" a "] * 3, smallest_group=20)
    assert [(g.name, g.count, g.small) for g in found.groups] == [
        ("a", 43, False),
        ("b", 10, True),
        ("unknown", 35, False),
    ]


def test_few_numbers_are_in_their_order():
    assert [g.name for g in table(["10"] * 10 + ["9"] * 20 + ["2"] * 5).groups] == ["2", "9", "10"]


def test_many_numbers_are_cut_at_their_quartiles_and_equal_ones_stay_together():
    values = [str(number) for number in range(80)] + [""] * 8
    found = table(values)
    assert [(g.name, g.count) for g in found.groups] == [
        ("0 to 19", 20), ("20 to 39", 20), ("40 to 59", 20), ("60 to 79", 20), ("unknown", 8),
    ]  # fmt: skip
    assert found.note == "80 different numbers, cut at their quartiles"
    tied = table(["0"] * 60 + [str(number) for number in range(1, 41)])
    assert [(g.name, g.count) for g in tied.groups] == [("0 to 0", 60), ("1 to 15", 15), ("16 to 40", 25)]
    assert sum(g.count for g in tied.groups) == 100


def test_many_words_are_the_largest_and_the_others():
    values = ["big"] * 20 + ["mid"] * 10 + [f"w{number}" for number in range(15)]
    found = table(values, most_groups=3)
    assert [(g.name, g.count) for g in found.groups] == [("big", 20), ("mid", 10), ("other values", 15)]
    assert "17 different values: the 2 largest" in found.note


def test_a_subgroup_of_one_class_says_so():
    given = made("binary", 60)
    found = subgroup_table(with_column(given, [str(t) for t in given.targets]), np.array([0.5]), "c", QUICK)
    assert all(group.figures["auc"].value is None and group.figures["auc"].note for group in found.groups)


def test_a_mean_without_a_class_says_which():
    given = made("multiclass", 80)
    sides = ["no C" if target != 2 and row % 2 else "all" for row, target in enumerate(given.targets)]
    found = subgroup_table(with_column(given, sides), np.full(4, 0.5), "c", QUICK)
    notes = {group.name: group.figures["auc"].note for group in found.groups}
    assert notes["no C"].startswith("mean without 'C'")
    assert "mean without" not in notes["all"]


def test_a_column_that_is_missing_is_named():
    with pytest.raises(DataError, match="no column 'city': there is 'patient', 'site'"):
        subgroup_table(made("binary"), np.array([0.5]), "city", QUICK)

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.classification.place import Lines, painted
from visionpeft.data.classification import SplitConfig, folds, split_pictures
from visionpeft.data.classification.splits import shared_out
from visionpeft.errors import DataError

QUIET = {"leaks": {"same": "say", "near": "off"}}

cases = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), min_size=40, max_size=80)


def names(part):
    return [example.name for example in part.examples]


def patients(part):
    return {example.patient for example in part.examples}


@settings(max_examples=40, deadline=None)
@given(cases=cases, seed=st.integers(0, 10))
def test_every_picture_is_in_one_split_and_every_patient_too(cases, seed):
    labels, owners = zip(*cases, strict=True)
    if len(set(owners)) < 10:
        return
    pictures = painted(labels, [f"p{owner}" for owner in owners])
    for splits in [split_pictures(pictures, SplitConfig(**QUIET), seed), *folds(pictures, 4, seed)]:
        parts = [splits.train, splits.validation, splits.test]
        assert sorted(name for part in parts for name in names(part)) == sorted(names(pictures))
        assert sum(len(patients(part)) for part in parts) == len(patients(pictures))


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(7, 200), min_size=2, max_size=3), seed=st.integers(0, 5))
def test_each_label_is_within_two_pictures_of_what_the_fractions_say(counts, seed):
    pictures = painted([label for label, count in enumerate(counts) for _ in range(count)])
    config = SplitConfig(fractions=(0.6, 0.2, 0.2), **QUIET)
    splits = split_pictures(pictures, config, seed)
    for part, fraction in zip(splits.parts().values(), config.fractions, strict=True):
        got = part.one_hot().sum(axis=0)[: len(counts)]
        assert np.abs(got - fraction * np.array(counts)).max() < 2
        assert abs(len(part) - fraction * sum(counts)) <= 2.0


def test_groups_are_shared_out_approximately():
    chance = np.random.default_rng(0)
    owners = chance.integers(0, 120, 1000)
    rare = chance.random(120) < 0.1
    labels = np.where(rare[owners], 2, chance.integers(0, 2, 1000))
    pictures = painted(labels.tolist(), [f"p{owner}" for owner in owners])
    whole = np.bincount(labels, minlength=3)
    for splits in folds(pictures, 5, seed=3):
        assert np.abs(splits.test.one_hot().sum(axis=0) / whole - 0.2).max() < 0.04
        assert np.abs(splits.train.one_hot().sum(axis=0) / whole - 0.6).max() < 0.06


def test_without_stratifying_labels_are_not_looked_at():
    one = painted([0] * 50 + [1] * 50)
    other = painted([0, 1] * 50)
    config = SplitConfig(stratify=False, **QUIET)
    assert names(split_pictures(one, config, 1).test) == names(split_pictures(other, config, 1).test)
    tests = [split_pictures(one, config, seed).test.one_hot()[:, 0].sum() for seed in range(8)]
    assert len(set(tests)) > 1
    tests = [split_pictures(one, SplitConfig(**QUIET), seed).test.one_hot()[:, 0].sum() for seed in range(8)]
    assert set(tests) <= {7, 8}


def test_a_split_depends_on_the_seed_and_not_on_the_order():
    pictures = painted([0, 1, 2] * 20, [f"p{number // 2}" for number in range(60)])
    backwards = pictures.subset(range(59, -1, -1))
    config = SplitConfig(**QUIET)
    first = split_pictures(pictures, config, 5)
    assert set(names(first.test)) == set(names(split_pictures(backwards, config, 5).test))
    assert set(names(first.test)) != set(names(split_pictures(pictures, config, 6).test))
    assert names(first.test) == names(split_pictures(pictures, config, 5).test)


def test_multilabel_pictures_are_stratified_too():
    chance = np.random.default_rng(1)
    hot = chance.random((400, 3)) < (0.05, 0.3, 0.6)
    pictures = painted([tuple(np.flatnonzero(row).tolist()) for row in hot], kind="multilabel")
    splits = split_pictures(pictures, SplitConfig(fractions=(0.5, 0.25, 0.25), **QUIET), 0)
    for part, fraction in zip(splits.parts().values(), (0.5, 0.25, 0.25), strict=True):
        assert np.abs(part.one_hot().sum(axis=0) - fraction * hot.sum(axis=0)).max() <= 3


def test_sainte_lague_by_hand():
    """One label, seats for 0.5, 0.3, 0.2: divisors 1, 3, 5 give the first ten seats 5, 3, 2."""
    ones = np.ones((10, 1), dtype=np.int64)
    found = shared_out(ones, (0.5, 0.3, 0.2)).tolist()
    assert found == [0, 1, 2, 0, 0, 1, 0, 2, 1, 0] or Counter(found) == {0: 5, 1: 3, 2: 2}
    assert Counter(shared_out(ones, (0.5, 0.0, 0.5)).tolist()) == {0: 5, 2: 5}
    assert shared_out(np.array([[3], [2], [1]]), (0.5, 0.5)).tolist() == [0, 1, 1]


def test_given_splits_are_kept():
    pictures = painted([0, 1] * 6, names=("a", "b"), splits=["train"] * 6 + ["validation"] * 2 + ["test"] * 4)
    lines = Lines()
    splits = split_pictures(pictures, SplitConfig(fractions=(0.5, 0.25, 0.25)), 0, lines)
    assert [len(part) for part in splits.parts().values()] == [6, 2, 4]
    assert lines.said == []
    made = split_pictures(pictures, SplitConfig(use="made", fractions=(0.5, 0.25, 0.25)), 0)
    assert [len(part) for part in made.parts().values()] == [6, 3, 3]


def test_validation_is_taken_of_train_where_it_is_not_given():
    owners = [f"p{number // 2}" for number in range(16)]
    pictures = painted([0, 1] * 8, owners, splits=["train"] * 12 + ["test"] * 4)
    lines = Lines()
    splits = split_pictures(pictures, SplitConfig(fractions=(0.5, 0.25, 0.25)), 0, lines)
    assert [len(part) for part in splits.parts().values()] == [8, 4, 4]
    assert patients(splits.train) & patients(splits.validation) == set()
    assert lines.said[0] == "no validation pictures are given: 4 of 12 training ones are taken."
    none = split_pictures(pictures, SplitConfig(fractions=(0.8, 0, 0.2)), 0)
    assert [len(part) for part in none.parts().values()] == [12, 0, 4]


def test_splits_that_cannot_be():
    with pytest.raises(DataError, match="gives no splits"):
        split_pictures(painted([0, 1]), SplitConfig(use="given"), 0)
    with pytest.raises(DataError, match=r"0001\.png has no split"):
        split_pictures(painted([0, 1], splits=["train", None]), SplitConfig(), 0)
    with pytest.raises(DataError, match="no picture is given as train"):
        split_pictures(painted([0, 1], splits=["test", "test"]), SplitConfig(), 0)
    with pytest.raises(DataError, match="no picture is left for test: 2 patients are too few"):
        split_pictures(painted([0, 1] * 4, ["p", "q"] * 4), SplitConfig(fractions=(0.4, 0.3, 0.3)), 0)
    with pytest.raises(DataError, match="5 folds are too many for 4 patients"):
        folds(painted([0, 1] * 4, list("pqrs") * 2), 5, 0)
    with pytest.raises(DataError, match="2 folds are too few"):
        folds(painted([0, 1] * 4), 2, 0)
    for fractions in ((0.5, 0.5, 0.5), (0, 0.5, 0.5), (1.2, -0.1, -0.1)):
        with pytest.raises(ValueError, match="add up to 1"):
            SplitConfig(fractions=fractions)


def test_what_cannot_be_learned_or_measured_is_told():
    lines = Lines()
    owners = ["p", None] * 4
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    split_pictures(painted([0, 1, 0, 1, 0, 1, 2, 0], owners, splits=splits), SplitConfig(**QUIET), 0, lines)
    assert "4 of 8 pictures name no patient: each of them is taken for one of its own." in lines.said
    assert "no picture of b is in test: nothing can be measured for it there." in lines.said
    assert "no picture of c is in train: it cannot be learned." in lines.said


def test_each_part_is_the_test_once_and_the_validation_once():
    pictures = painted([0, 1, 2] * 10)
    found = folds(pictures, 5, 0)
    tests = [set(names(splits.test)) for splits in found]
    assert set().union(*tests) == set(names(pictures))
    assert sum(map(len, tests)) == 30
    assert [set(names(splits.validation)) for splits in found] == [*tests[1:], tests[0]]

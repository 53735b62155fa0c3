from collections import Counter

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tests.data.classification.place import painted
from visionpeft.data.classification import Balanced, class_weights
from visionpeft.data.order import Position, positions
from visionpeft.errors import DataError

LABELS = [0] * 50 + [1] * 12 + [2] * 3
PICTURES = painted(LABELS)


def epoch(balanced, number, samples=65, seed=0):
    drawn = positions(seed, samples, number * samples, samples)
    return [balanced.picture(position) for position in drawn]


def test_each_label_comes_equally_often_in_each_epoch():
    balanced = Balanced(PICTURES, 0)
    for number in range(4):
        counts = Counter(LABELS[picture] for picture in epoch(balanced, number))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert sum(counts.values()) == 65


def test_within_a_label_each_picture_comes_equally_often():
    balanced = Balanced(PICTURES, 0)
    counts = Counter(picture for number in range(9) for picture in epoch(balanced, number))
    for label in range(3):
        often = [counts[picture] for picture in range(65) if LABELS[picture] == label]
        assert max(often) - min(often) <= 1
    rare = [counts[picture] for picture in range(62, 65)]
    assert min(rare) > 50


def test_draws_are_a_function_of_seed_epoch_and_index():
    one = epoch(Balanced(PICTURES, 0), 2)
    assert one == epoch(Balanced(PICTURES, 0), 2)
    assert one != epoch(Balanced(PICTURES, 1), 2)
    assert one != epoch(Balanced(PICTURES, 0), 3)
    position = Position(2, 17, 5)
    assert Balanced(PICTURES, 0).position(position) == Position(2, Balanced(PICTURES, 0).picture(position), 5)


def test_labels_in_a_batch_come_in_random_order():
    order = [LABELS[picture] for picture in epoch(Balanced(PICTURES, 0), 0)]
    assert order[:30] != [index % 3 for index in range(30)]


def test_labels_without_pictures_are_passed_over_and_multilabel_has_its_pools():
    counts = Counter(epoch(Balanced(painted([0, 0, 0, 2], names=("a", "b", "c")), 0), 0, 4))
    assert counts[3] == 2
    pictures = painted([(0,), (0,), (0,), (0,), (0, 1), (), ()], kind="multilabel")
    balanced = Balanced(pictures, 0)
    hot = pictures.one_hot()
    pools = Counter()
    for number in range(60):
        for index in range(7):
            picture = balanced.picture(Position(number, index, 0))
            assert not hot[picture].any() if index % 3 == 2 else hot[picture, index % 3]
            pools[index % 3] += 1
    assert pools == {0: 180, 1: 120, 2: 120}


def test_inverse_frequency_is_scikit_learns():
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=np.array(LABELS))
    assert class_weights(PICTURES) == pytest.approx(wanted, rel=1e-12)


def test_effective_numbers():
    beta = 0.99
    counts = np.array([50, 12, 3])
    raw = (1 - beta) / (1 - beta**counts)
    got = class_weights(PICTURES, "effective", beta)
    assert got / got[0] == pytest.approx(raw / raw[0], rel=1e-12)
    assert (got * counts).sum() / 65 == pytest.approx(1.0)
    assert class_weights(PICTURES, "effective", 0.0) == pytest.approx([1, 1, 1])
    nearly = class_weights(PICTURES, "effective", 1 - 1e-9)
    assert nearly == pytest.approx(class_weights(PICTURES), rel=1e-5)


def test_multilabel_weights_are_of_present_labels():
    pictures = painted([(0,), (0, 1), (1,), (1,), ()], kind="multilabel", names=("a", "b"))
    assert class_weights(pictures) == pytest.approx([3 / 2, 2 / 3])
    beta = 0.9
    number = {n: (1 - beta**n) / (1 - beta) for n in (2, 3)}
    assert class_weights(pictures, "effective", beta) == pytest.approx([number[3] / number[2], number[2] / number[3]])


def test_labels_that_cannot_be_weighted():
    with pytest.raises(DataError, match="no picture has the label c"):
        class_weights(painted([0, 1]))
    with pytest.raises(DataError, match="all or none of the pictures have the label a"):
        class_weights(painted([(0,), (0, 1)], kind="multilabel", names=("a", "b")))
    with pytest.raises(DataError, match=r"lies in \[0, 1\)"):
        class_weights(PICTURES, "effective", 1.0)

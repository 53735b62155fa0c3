from collections import Counter

import pytest

from visionpeft.data.order import permutation, positions


def test_each_sample_comes_once_an_epoch():
    drawn = positions(seed=3, samples=7, start=0, count=21)
    for epoch in range(3):
        assert sorted(p.index for p in drawn if p.epoch == epoch) == list(range(7))
    assert Counter(p.index for p in drawn) == dict.fromkeys(range(7), 3)


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_any_start_gives_the_same_sequence(batch):
    whole = [(p.epoch, p.index) for p in positions(5, 7, 0, 60)]
    pieces = [positions(5, 7, start, batch) for start in range(0, 60, batch)]
    assert [(p.epoch, p.index) for piece in pieces for p in piece][:60] == whole
    assert all([p.slot for p in piece] == list(range(batch)) for piece in pieces)


def test_epochs_and_seeds_differ():
    orders = {permutation(seed, 50, epoch) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16

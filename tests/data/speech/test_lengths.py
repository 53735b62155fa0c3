"""Batches of like length: each utterance once an epoch, the same on any number of processes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionpeft.data.ahead import Ahead
from visionpeft.data.speech.lengths import Grouped
from visionpeft.training.batches import BatchPlan


def taken(grouped, plan, step):
    """Utterances of a step's global batch, in the order of their slots."""
    return [grouped.utterance(position.epoch, position.index) for position in plan.whole(step)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.integers(0, 9), st.integers(0, 2**40))
def test_each_utterance_comes_once_an_epoch(count, batch, spread, epoch, seed):
    lengths = np.random.default_rng(seed).integers(1, 9, count)
    grouped = Grouped(lengths.tolist(), seed, batch, spread)
    drawn = [grouped.utterance(epoch, index) for index in range(count)]
    assert sorted(drawn) == list(range(count))
    again = Grouped(lengths.tolist(), seed, batch, spread)
    assert drawn == [again.utterance(epoch, index) for index in range(count)]


@pytest.mark.parametrize(("count", "batch"), [(64, 8), (67, 8), (100, 12)])
def test_batches_are_of_like_length_wherever_an_epoch_begins(count, batch):
    lengths = np.random.default_rng(0).permutation(count)
    grouped = Grouped(lengths.tolist(), 3, batch)
    plan = BatchPlan(3, count, batch, 1, 0, 1)
    for step in range(3 * count // batch):
        whole = plan.whole(step)
        if len({position.epoch for position in whole}) > 1:
            continue
        found = sorted(lengths[taken(grouped, plan, step)])
        begun = -whole[0].epoch * count % batch
        within = (count - begun) // batch * batch  # those of the epoch's whole batches: neighbours in this order
        others = sorted(
            lengths[grouped.utterance(p.epoch, p.index)]
            for other in range(3 * count // batch + 3)
            for p in plan.whole(other)
            if p.epoch == whole[0].epoch and len({q.epoch for q in plan.whole(other)}) == 1
        )
        assert len(others) == within
        place = others.index(found[0])
        assert found == others[place : place + batch]


def test_order_changes_with_the_epoch_and_the_seed_and_long_ones_do_not_come_last():
    lengths = list(range(400))
    firsts = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        grouped, plan = Grouped(lengths, seed, 8), BatchPlan(seed, 400, 8, 1, 0, 1)
        firsts.append(tuple(np.mean(taken(grouped, plan, epoch * 50 + step)) for step in range(50)))
    assert len(set(firsts)) == 3
    assert all(abs(np.corrcoef(range(50), one)[0, 1]) < 0.5 for one in firsts)


def test_windows_keep_it_random_which_utterances_meet():
    lengths = list(range(1_000))
    near, far = Grouped(lengths, 0, 8, spread=100), Grouped(lengths, 0, 8, spread=4)
    plan = BatchPlan(0, 1_000, 8, 1, 0, 1)
    width = [np.mean([np.ptp(taken(one, plan, step)) for step in range(120)]) for one in (near, far)]
    assert width[0] < 15 < 100 < width[1] < 400


@pytest.mark.parametrize(("world", "accumulation", "size"), [(1, 4, 2), (2, 2, 2), (4, 1, 2), (2, 1, 4)])
def test_any_number_of_processes_takes_the_same_global_batch(world, accumulation, size):
    lengths, batch = np.random.default_rng(1).integers(1, 30, 45).tolist(), world * accumulation * size
    assert batch == 8
    one = BatchPlan(5, 45, 8, 1, 0, 1)
    grouped = Grouped(lengths, 5, batch)
    for step in range(12):
        shared = {}
        for rank in range(world):
            for micro in BatchPlan(5, 45, size, accumulation, rank, world).micro(step):
                shared |= {p.slot: grouped.utterance(p.epoch, p.index) for p in micro}
        assert [shared[slot] for slot in range(8)] == taken(grouped, one, step)


def test_it_works_ahead_of_time():
    grouped, plan = Grouped(list(range(40)), 0, 8), BatchPlan(0, 40, 4, 2, 0, 1)
    ahead = Ahead(grouped.utterance, 0, 40, 1, 2)
    for step in range(12):
        got = [sample for micro in plan.micro(step) for sample in ahead.take(micro)]
        assert got == taken(grouped, plan, step)

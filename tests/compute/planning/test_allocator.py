"""The layout of tensors in a GPU's memory, by the rules of torch's allocator."""

import random

from visionpeft.compute.planning.allocator import Allocator, Memory, memory_of
from visionpeft.compute.planning.ledger import Event

MIB = 1 << 20


def events(*changes: tuple[int, int]) -> list[Event]:
    return [Event(number, size, "") for number, size in changes]


def test_segments_are_of_three_sizes():
    assert memory_of(events((1, 1))) == Memory(512, 2 * MIB)
    assert memory_of(events((1, MIB))) == Memory(MIB, 2 * MIB)
    assert memory_of(events((1, MIB + 1))) == Memory(MIB + 512, 20 * MIB)
    assert memory_of(events((1, 10 * MIB))) == Memory(10 * MIB, 10 * MIB)
    assert memory_of(events((1, 11 * MIB + 1))) == Memory(12 * MIB, 12 * MIB)  # too little to split


def test_what_was_freed_is_taken_again():
    again = events((1, 30 * MIB), (1, 0), (2, 30 * MIB), (2, 0), (3, 8 * MIB), (4, 20 * MIB))
    assert memory_of(again) == Memory(30 * MIB, 30 * MIB)


def test_small_and_large_do_not_share_segments():
    assert memory_of(events((1, 12 * MIB), (1, 0), (2, 1000))).reserved == 14 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken():
    # of free blocks of 40 and 30 MiB the second is split for 25, so that 40 still fits into the first
    changes = events((1, 40 * MIB), (2, 30 * MIB), (1, 0), (2, 0), (3, 25 * MIB), (4, 40 * MIB))
    assert memory_of(changes).reserved == 70 * MIB


def test_a_hole_between_neighbours_is_closed_when_they_go():
    # three parts of one segment of 20 MiB: without joining them 18 MiB would not fit
    changes = events((1, 6 * MIB), (2, 6 * MIB), (3, 6 * MIB), (1, 0), (3, 0), (2, 0), (4, 18 * MIB))
    assert memory_of(changes) == Memory(18 * MIB, 20 * MIB)


def test_a_hole_that_is_too_small_costs_another_segment():
    changes = events((1, 9 * MIB), (2, 9 * MIB), (1, 0), (3, 9 * MIB + MIB // 2))
    assert memory_of(changes).reserved == 40 * MIB


def test_nothing_is_lost_and_nothing_overlaps_in_any_order():
    chance, allocator, live = random.Random(0), Allocator(), dict[int, int]()
    for number in range(3000):
        if live and chance.random() < 0.48:
            gone = chance.choice(list(live))
            allocator.give(gone)
            del live[gone]
        else:
            live[number] = chance.choice([700, 300_000, 3 * MIB, 12 * MIB])
            allocator.take(number, live[number])
        assert sum(live.values()) <= allocator.allocated <= allocator.reserved
    for number in live:
        allocator.give(number)
    assert allocator.allocated == 0
    assert allocator.used_segments() == 0

"""Samples made ahead: the same as made on demand, and really made before they are asked for."""

import threading
import time

import pytest
from PIL import Image

from visionpeft.data.ahead import Ahead, Kept
from visionpeft.training.batches import BatchPlan


@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_the_next_batch_is_made_before_it_is_asked_for(accumulation, world):
    plan = BatchPlan(seed=3, samples=10, batch_size=3, accumulation=accumulation, rank=world - 1, world=world)
    made: list[tuple[int, int]] = []
    ahead = Ahead(lambda epoch, index: made.append((epoch, index)) or (epoch, index), 3, 10, world, workers=2)
    for step in range(2, 8):  # as a resumed run begins
        for micro in plan.micro(step):
            wanted = [(p.epoch, p.index) for p in micro]
            assert ahead.take(micro) == wanted
    ahead._pool.shutdown(wait=True)
    micros = [[(p.epoch, p.index) for p in micro] for step in range(2, 9) for micro in plan.micro(step)]
    expected = [draw for micro in micros[: 6 * accumulation + 1] for draw in micro]
    assert sorted(made) == sorted(expected)  # each once, one batch ahead


def test_a_jump_is_followed_and_what_was_made_for_nothing_is_dropped():
    plan = BatchPlan(0, 50, 4, 1, 0, 1)
    ahead = Ahead(lambda epoch, index: (epoch, index), 0, 50, 1, workers=1)
    for step in (0, 1, 7, 8, 3):
        (micro,) = plan.micro(step)
        assert ahead.take(micro) == [(p.epoch, p.index) for p in micro]
        assert len(ahead._coming) == 4


def test_without_threads_nothing_is_made_ahead():
    plan, made = BatchPlan(0, 8, 4, 1, 0, 1), []
    ahead = Ahead(lambda epoch, index: made.append(threading.current_thread()), 0, 8, 1, workers=0)
    ahead.take(plan.micro(0)[0])
    assert made == [threading.main_thread()] * 4


def test_an_error_of_a_sample_is_raised():
    def make(epoch: int, index: int) -> int:
        time.sleep(0.001)
        raise ValueError(f"sample {index}")

    with pytest.raises(ValueError, match="sample"):
        Ahead(make, 0, 8, 1, workers=2).take(BatchPlan(0, 8, 4, 1, 0, 1).micro(0)[0])


def test_pictures_are_kept_while_there_is_room():
    decoded: list[int] = []

    def decode(number: int) -> Image.Image:
        decoded.append(number)
        return Image.new("RGB", (10, 10))

    kept = Kept(decode, room=650)
    for number in (0, 1, 2, 0, 1, 2):
        assert kept.image(number).size == (10, 10)
    assert decoded == [0, 1, 2, 2]

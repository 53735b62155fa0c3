"""Samples made on threads, those of the next batch while this one trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from PIL import Image

from visionpeft.data.order import Position, permutation, positions

T = TypeVar("T")
Draw = tuple[int, int]
"""Epoch and index of a sample."""

_BYTES_A_PIXEL = 3


class Ahead(Generic[T]):
    """Makes samples of a run in its order, a batch ahead. What a sample is depends on its draw alone, not on threads.

    Args:
        make: the sample of (epoch, index); called on several threads.
        seed: of the run.
        samples: of an epoch.
        world: number of processes that share a step's batch.
        workers: threads; 0 makes everything when it is asked for.
    """

    def __init__(self, make: Callable[[int, int], T], seed: int, samples: int, world: int, workers: int) -> None:
        self._make, self._seed, self._samples, self._world = make, seed, samples, world
        self._pool = ThreadPoolExecutor(workers, "samples") if workers else None
        self._coming: dict[Draw, Future[T]] = {}
        self._start = 0  # draws before the batch that is expected

    def take(self, wanted: Sequence[Position]) -> list[T]:
        """Return the samples at these positions, in their order; an error of one of them is raised."""
        draws = [(position.epoch, position.index) for position in wanted]
        if self._pool is None:
            return [self._make(*draw) for draw in draws]
        pool, ready = self._pool, self._coming
        futures = [ready.pop(draw, None) or pool.submit(self._make, *draw) for draw in draws]
        for passed in ready.values():
            passed.cancel()
        self._coming = {draw: pool.submit(self._make, *draw) for draw in self._next(draws)}
        return [future.result() for future in futures]

    def _next(self, draws: list[Draw]) -> list[Draw]:
        """The draws of this process's next micro-batch: micro-batches go round the processes."""
        if self._at(self._start, 1) != draws[:1]:
            epoch, index = draws[0]
            self._start = epoch * self._samples + permutation(self._seed, self._samples, epoch).index(index)
        self._start += len(draws) * self._world
        return self._at(self._start, len(draws))

    def _at(self, start: int, count: int) -> list[Draw]:
        return [(p.epoch, p.index) for p in positions(self._seed, self._samples, start, count)]


def in_batches(read: Callable[[int], T], count: int, size: int, workers: int = 2) -> Iterator[list[T]]:
    """Yield what ``read`` gives for 0 to ``count`` - 1, ``size`` at a time, the next batch being read meanwhile.

    Args:
        read: called on several threads.
        count: how many there are.
        size: of a batch.
        workers: threads.
    """
    with ThreadPoolExecutor(workers, "reading") as pool:
        coming = [pool.submit(read, number) for number in range(min(size, count))]
        for start in range(0, count, size):
            ready = coming
            coming = [pool.submit(read, number) for number in range(start + size, min(start + 2 * size, count))]
            yield [future.result() for future in ready]


class Kept:
    """Pictures by their number, decoded once and kept while there is room; beyond it they are decoded again.

    Args:
        decode: the picture of a number, RGB; called on several threads.
        room: bytes at most.
    """

    def __init__(self, decode: Callable[[int], Image.Image], room: int) -> None:
        self._decode, self._room = decode, room
        self._pictures: dict[int, Image.Image] = {}

    def image(self, number: int) -> Image.Image:
        """Return the picture; it is shared, so it is not to be changed."""
        found = self._pictures.get(number)
        if found is not None:
            return found
        picture = self._decode(number)
        size = picture.width * picture.height * _BYTES_A_PIXEL
        if size <= self._room:
            self._room -= size
            self._pictures[number] = picture
        return picture

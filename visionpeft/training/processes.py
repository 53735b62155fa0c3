"""What the processes of a run do together: share out work, agree on a value, wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them. Every method but ``mine`` is called on all of them.

    Attributes:
        rank: this one, 0 to world - 1; 0 is the main one, which writes files and speaks.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the main process."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Return this process's share of 0 to ``count`` - 1: runs of nearly equal length, in the order of ranks."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def shared(self, count: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
        """Return what ``work`` gives for 0 to ``count`` - 1, each done by one process, in order on all.

        Args:
            count: how many there are.
            work: returns one value for each index of a share, which may be empty; values travel pickled.
        """
        return [value for share in self.gathered(list(work(self.mine(count)))) for value in share]

    def gathered(self, value: T) -> list[T]:
        """Return every process's value, in the order of ranks, on all of them."""
        if self.world == 1:
            return [value]
        found: list[T | None] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def from_main(self, value: T) -> T:
        """Return the main process's value on all of them."""
        if self.world == 1:
            return value
        holder: list[T] = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    def wait(self) -> None:
        """Return when all have come here."""
        if self.world > 1:
            torch.distributed.barrier()


ALONE = Processes()
"""A single process."""


def processes_of(accelerator: Accelerator) -> Processes:
    """Return the processes that a launcher has started."""
    return Processes(accelerator.process_index, accelerator.num_processes)

"""Which samples a step takes on which process: positions by index, the same for every number of processes."""

from __future__ import annotations

from dataclasses import dataclass

from visionpeft.data.order import Position, positions


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch of a step is shared out.

    Attributes:
        seed: of the run.
        samples: of an epoch.
        batch_size: samples of a micro-batch on one process.
        accumulation: micro-batches of a step.
        rank: this process.
        world: number of processes.
    """

    seed: int
    samples: int
    batch_size: int
    accumulation: int
    rank: int
    world: int

    @property
    def global_batch(self) -> int:
        """Samples of a step over all micro-batches and processes."""
        return self.batch_size * self.accumulation * self.world

    def whole(self, step: int) -> list[Position]:
        """Return the positions of step ``step`` (from 0) on all processes."""
        return positions(self.seed, self.samples, step * self.global_batch, self.global_batch)

    def micro(self, step: int) -> list[list[Position]]:
        """Return this process's positions in step ``step``, by micro-batch."""
        whole = self.whole(step)
        starts = [(number * self.world + self.rank) * self.batch_size for number in range(self.accumulation)]
        return [whole[start : start + self.batch_size] for start in starts]

"""The toy task in several processes, one of which fails in a way that is named; started with ``python -m``."""

import os
import signal
import sys
import time
from pathlib import Path

from tests.training.toy import Toy
from visionpeft.cli import run_guarded
from visionpeft.errors import DataError
from visionpeft.training import guard
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig

CONFIG = TrainConfig(steps=40, batch_size=4, learning_rate=0.01, checkpoint_every=5, log_every=1)
AT = 12
"""How many batches the troubled process takes."""


class Troubled(Toy):
    """Meets ``trouble`` at its twelfth batch, once, where its rank is the one that is given."""

    def __init__(self, trouble: str, rank: int) -> None:
        super().__init__(dropout=0.0)
        self.trouble, self.rank = trouble, rank

    def batch(self, positions):
        made = super().batch(positions)
        if len(self.seen) == AT and self.context.rank == self.rank:
            TROUBLES[self.trouble]()
        if self.trouble == "asked":
            time.sleep(0.1)
        return made


def unreadable():
    raise DataError("photos/seven.png cannot be read: give another picture.")


def without_memory():
    raise MemoryError


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


TROUBLES = {
    "error": unreadable,
    "memory": without_memory,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "still": lambda: time.sleep(3600),
    "asked": ask_to_stop,
    "none": lambda: None,
}


def main() -> None:
    folder, trouble, rank, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if trouble in ("stopped", "still"):  # sooner than users have it
        guard._SILENT, guard._STILL = 8.0, 12.0  # pyright: ignore[reportPrivateUsage]
    fit(Troubled(trouble, rank), CONFIG.model_copy(update={"batch_size": batch}), folder, resume="auto")


if __name__ == "__main__":
    sys.exit(run_guarded(main))

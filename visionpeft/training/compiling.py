"""Whether a run's blocks are compiled, the first step in which they are, and what happens where they cannot be."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from visionpeft.compute.compiled import compilable, compiled, keep_compiled
from visionpeft.data.cache import user_cache
from visionpeft.progress import Progress
from visionpeft.training.settings import TrainConfig

PAYS = 2000
"""Steps from which on ``auto`` compiles: the time that it takes has to be earned by steps of some milliseconds less."""


def compiles(config: TrainConfig, device: torch.device, steps: int) -> bool:
    """Return whether a run with so many steps before it compiles."""
    if config.compile == "auto":
        return device.type == "cuda" and steps >= PAYS
    return config.compile == "on"


@contextmanager
def compiled_blocks(models: Iterable[nn.Module], rehearse: Callable[[], None], progress: Progress) -> Generator[bool]:
    """Let the models' blocks compute compiled within the context; yields whether they do.

    Args:
        models: in training.
        rehearse: makes a step that leaves no trace; everything that it needs is compiled in it.
        progress: shows that this takes time, or why it is not done.
    """
    blocks = [block for model in models for block in compilable(model)]
    with ExitStack() as stack:
        if not blocks:
            progress.say("nothing is compiled: this model has no blocks that are known to repeat.")
            yield False
            return
        keep_compiled(user_cache("compiled"))
        stack.enter_context(compiled(blocks))
        done = _rehearsed(rehearse, progress)
        if not done:
            stack.close()
        yield done


def _rehearsed(rehearse: Callable[[], None], progress: Progress) -> bool:
    try:
        with progress.phase("compiling", 1) as bar:
            rehearse()
            bar.advance()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as reason:  # whatever stops the compiler: a missing one of C++, a full disk, …
        first = str(reason).strip().partition("\n")[0]
        progress.say(f"blocks are not compiled, which makes steps slower: {first}")
        return False
    return True

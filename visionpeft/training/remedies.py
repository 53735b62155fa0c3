"""Failures in the middle of the work, told with the setting to change."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from visionpeft.compute.memory import explain
from visionpeft.errors import ResourceError, TrainingError

_NAMED = 16  # files that a message names


@contextmanager
def memory_explained(work: str, batch_size: int, gradient_checkpointing: bool) -> Generator[None]:
    """Turn running out of memory while doing ``work`` into one line with the settings to change.

    Raises:
        ResourceError: memory of the device or the host ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(explain(error), ResourceError):
            raise
        raise _short_of_memory(work, batch_size, gradient_checkpointing) from error


def _short_of_memory(work: str, batch_size: int, gradient_checkpointing: bool) -> ResourceError:
    remedies: list[str] = []
    if batch_size > 1:
        remedies.append(
            f"train.batch_size={batch_size // 2} (now {batch_size}) with train.gradient_accumulation doubled"
        )
    if not gradient_checkpointing:
        remedies.append("train.gradient_checkpointing=true")
    remedies += ["train.vram=auto, which finds what fits", "a smaller data.resolution"]
    return ResourceError(f"out of memory while {work}. Set {', or '.join(remedies)}; resume=auto keeps what is saved.")


def not_a_number(step: int, files: Sequence[str], saved: Sequence[int]) -> TrainingError:
    """Return the error about a loss or gradient that is not a number.

    Args:
        step: the first such one, from 1.
        files: of the step's batch.
        saved: the steps of which there are checkpoints, in order.
    """
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    kept = f"The checkpoint of step {saved[-1]} stays." if saved else "No checkpoint was written yet."
    return TrainingError(
        f"the loss or a gradient of step {step} is not a number; its batch was {', '.join(files[:_NAMED])}{more}."
        f" Look at these files, lower train.learning_rate, or set train.precision to fp32. {kept}"
    )

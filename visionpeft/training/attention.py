"""The kernel that a run attends with: what is named, or the fastest here for the shapes that its first batch shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from visionpeft.compute.attending import OWN, Choice, Listening, Shape, choose, refused, require_working
from visionpeft.compute.precision import Precision
from visionpeft.data.cache import user_cache
from visionpeft.data.order import Position
from visionpeft.progress import Progress
from visionpeft.training.rng import StepRng
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import Task


def attention_of(
    task: Task, config: TrainConfig, positions: Sequence[Position], precision: Precision, accelerator: Accelerator,
    progress: Progress,
) -> str:  # fmt: skip
    """Return which kernel attends in a run: "sdpa", torch's own choice, or one to force; it is said in a line.

    ``auto`` tries on a GPU. Elsewhere, and where every bit must be the same each time, it is torch's own choice.

    Args:
        task: prepared.
        config: the run's settings.
        positions: a micro-batch, whose loss is computed once without gradients to see what it attends to.
        precision: the arithmetic of the loss.
        accelerator: all processes take what the main one chooses.
        progress: for that line.

    Raises:
        ConfigError: the kernel that is named does not work here; MissingExtraError: it is not installed.
    """
    device, named = accelerator.device, config.attention
    if named == OWN or (named == "auto" and (device.type != "cuda" or config.deterministic)):
        return OWN
    if named != "auto":
        require_working(named, device)
    calls = calls_of(task, config.seed, positions, precision, device)
    if named != "auto":
        _say_refused(named, refused(named, calls, device), calls, progress)
        return named
    found = [choose(calls, device, user_cache("attention"))] if accelerator.is_main_process and calls else [None]
    choice: Choice | None = broadcast_object_list(found)[0] if accelerator.num_processes > 1 else found[0]
    if choice is None:
        return OWN
    progress.say(choice.line)
    return choice.name


def calls_of(
    task: Task, seed: int, positions: Sequence[Position], precision: Precision, device: torch.device
) -> Counter[Shape]:
    """Return what the loss of a micro-batch attends to; no state is changed."""
    slots = torch.arange(len(positions), device=device)  # of a step of these alone
    rng = StepRng(seed, 0, slots, len(positions), device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        batch = task.batch(positions)
        with precision.autocast(device), Listening() as heard:
            task.loss(batch, rng)
    return heard.calls


def _say_refused(name: str, count: int, calls: Mapping[Shape, int], progress: Progress) -> None:
    rest = (
        f"; {count} have a mask, width or type that it does not take, which torch's other kernels do" if count else ""
    )
    progress.say(f"attention: {name}, as set, for {sum(calls.values())} calls of a step{rest}.")

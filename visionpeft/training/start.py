"""How a run begins: the processes it has, and the checkpoint it goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn

from visionpeft.compute.memory import device_memory
from visionpeft.compute.precision import Precision, precision_of
from visionpeft.compute.sharding import Sharding
from visionpeft.errors import ConfigError
from visionpeft.progress import Progress
from visionpeft.training.checkpoint import Checkpoint, CheckpointStore, read_checkpoint
from visionpeft.training.fingerprint import require_same
from visionpeft.training.lock import CHECKPOINTS, refuse_existing
from visionpeft.training.log import require_trackers
from visionpeft.training.processes import Processes, processes_of
from visionpeft.training.settings import TrainConfig

_ROOM = 0.5  # of a GPU, for the base: the rest is for activations and what is trained
_PATIENCE = timedelta(minutes=30)
"""For others that are at the same work; one that is lost or hangs is found long before, by the guard."""


def open_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """Return the processes and the device of this run, with the trackers that the settings ask for.

    Raises:
        MissingExtraError: a tracker's package is not installed.
        ConfigError: the launcher started one process where several were asked for, or more than there are GPUs.
    """
    require_trackers(config.trackers)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    _refuse_odd_launches(several)
    return Accelerator(
        cpu=several and not torch.cuda.is_available(),  # else torchrun's processes would not find each other
        log_with=list(config.trackers) or None,
        project_dir=str(output),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def _refuse_odd_launches(several: bool) -> None:
    asked = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if asked and not {"LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys():
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does where it sees fewer than "
            "two GPUs: add --multi_gpu to it (on a CPU too), or use torchrun --nproc_per_node N."
        )
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if several and 0 < gpus < here:
        raise ConfigError(f"{here} processes were started, and this machine has {gpus} GPUs: start one for each.")


def beginning(output: Path, resume: str | Path, processes: Processes, progress: Progress) -> Checkpoint | None:
    """Return the checkpoint to go on from, the same on all processes, or None for a new run.

    Args:
        output: the run's folder.
        resume: ``never``, ``auto``, or a checkpoint's folder.
        processes: of the run; the main one looks.
        progress: is told what is passed over.

    Raises:
        OutputError: the folder holds a run and ``resume`` is ``never``.
        FileFormatError: the named checkpoint is missing or damaged.
    """
    found = _chosen(output, resume, progress) if processes.main else None
    folder = processes.from_main(None if found is None else found.folder)
    return found if processes.main or folder is None else read_checkpoint(folder)


def require_continued(begun: Checkpoint, steps: int, settings: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint with other settings.

    Args:
        begun: the checkpoint.
        steps: how many the run is to have in all.
        settings: what must be as it was, nested JSON values.

    Raises:
        ConfigError: the settings differ from those at the beginning, or it has more steps behind it than are wanted.
    """
    require_same(begun.state["settings"], settings)
    if begun.step > steps:
        raise ConfigError(f"train.steps={steps}, but checkpoint {begun.folder} has {begun.step} steps behind it.")


def as_begun(config: TrainConfig, begun: Checkpoint | None, processes: int, progress: Progress) -> TrainConfig:
    """Return the settings with a step's samples shared out over another number of processes than the run began with.

    The global batch stays what it was, so the steps do too. That holds where batch size and accumulation are those
    that the run began with; where they were changed, what they come to is compared with it as it is.

    Raises:
        ConfigError: the global batch cannot be shared evenly by so many.
    """
    then = processes if begun is None else begun.state.get("processes", processes)
    whole = config.batch_size * config.gradient_accumulation * then
    if begun is None or then == processes or whole != begun.state["settings"]["train"]["global_batch"]:
        return config
    if whole % processes:
        able = [number for number in range(1, whole + 1) if whole % number == 0]
        raise ConfigError(
            f"the run began with {whole} samples a step on {then} processes, which {processes} cannot share evenly:"
            f" go on with {', '.join(map(str, able))} processes."
        )
    size = _micro_batch(whole // processes, config.batch_size)
    count = whole // processes // size
    progress.say(
        f"Going on with {processes} processes instead of {then}: a step is {count} micro-batch{'es' * (count > 1)} of "
        f"{size} on each, {whole} samples as before."
    )
    return config.model_copy(update={"batch_size": size, "gradient_accumulation": count})


def _micro_batch(share: int, most: int) -> int:
    """The largest part of a process's share that fits into memory as before; even where it was, as mixing asks it."""
    parts = [size for size in range(1, min(share, most) + 1) if share % size == 0]
    even = [size for size in parts if size % 2 == 0] if most % 2 == 0 else []
    return (even or parts)[-1]


def launched_precision(config: TrainConfig, accelerator: Accelerator) -> Precision:
    """Return the precision of the settings; where they leave it open, the launcher's word, or what suits the device.

    Raises:
        ConfigError: the device cannot compute in it.
    """
    launched = accelerator.mixed_precision
    asked = launched if config.precision == "auto" and launched in ("fp16", "bf16") else config.precision
    return precision_of(asked, accelerator.device)


def open_sharding(
    config: TrainConfig, precision: Precision, models: Iterable[nn.Module], accelerator: Accelerator
) -> Sharding | None:
    """Return what shares frozen models out over the processes, or None where each process shall have all of them.

    Raises:
        ConfigError: that is asked for, and there is one process.
    """
    if config.shard == "auto":
        size = precision.dtype.itemsize if precision.dtype else 4
        needed = sum(parameter.numel() * size for model in models for parameter in model.parameters())
        room = device_memory(accelerator.device)
        full = accelerator.num_processes > 1 and room is not None and needed > _ROOM * room.total
        return Sharding(accelerator.device) if processes_of(accelerator).from_main(full) else None
    return Sharding(accelerator.device) if config.shard == "on" else None


def best_store(output: Path) -> CheckpointStore:
    """Return where the best adapters of a run are."""
    return CheckpointStore(output / CHECKPOINTS / "best")


def _chosen(output: Path, resume: str | Path, progress: Progress) -> Checkpoint | None:
    store = CheckpointStore(output / CHECKPOINTS)
    if resume == "never":
        refuse_existing(output)
        return None
    found = store.newest(progress.say) if resume == "auto" else read_checkpoint(Path(resume))
    if found is not None and found.folder.parent.resolve() != store.folder.resolve():
        refuse_existing(output)
    return found

"""How a run begins: the processes it has, and the checkpoint it goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
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
from visionpeft.training.settings import TrainConfig

_ROOM = 0.5  # of a GPU, for the base: the rest is for activations and what is trained
_PATIENCE = timedelta(hours=2)  # the other processes wait while the main one caches, evaluates and draws previews


def open_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """Return the processes and the device of this run, with the trackers that the settings ask for.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    require_trackers(config.trackers)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        cpu=several and not torch.cuda.is_available(),  # else torchrun's processes would not find each other
        log_with=list(config.trackers) or None,
        project_dir=str(output),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def beginning(
    output: Path,
    resume: str | Path,
    steps: int,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
    progress: Progress,
) -> Checkpoint | None:
    """Return the checkpoint to go on from, the same on all processes, or None for a new run.

    Args:
        output: the run's folder.
        resume: ``never``, ``auto``, or a checkpoint's folder.
        steps: how many the run is to have in all.
        settings: what must be as it was, nested JSON values.
        accelerator: the run's processes.
        progress: is told what is passed over.

    Raises:
        OutputError: the folder holds a run and ``resume`` is ``never``.
        FileFormatError: the named checkpoint is missing or damaged.
        ConfigError: the settings differ from those at the beginning, or it has more steps behind it than are wanted.
    """
    found = _chosen(output, resume, steps, settings, progress) if accelerator.is_main_process else None
    folder = broadcast_object_list([None if found is None else str(found.folder)])[0]
    if accelerator.is_main_process or folder is None:
        return found
    return read_checkpoint(Path(folder))


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
        return Sharding(accelerator.device) if broadcast_object_list([full])[0] else None
    return Sharding(accelerator.device) if config.shard == "on" else None


def best_store(output: Path) -> CheckpointStore:
    """Return where the best adapters of a run are."""
    return CheckpointStore(output / CHECKPOINTS / "best")


def _chosen(
    output: Path, resume: str | Path, steps: int, settings: Mapping[str, Any], progress: Progress
) -> Checkpoint | None:
    store = CheckpointStore(output / CHECKPOINTS)
    if resume == "never":
        refuse_existing(output)
        return None
    found = store.newest(progress.say) if resume == "auto" else read_checkpoint(Path(resume))
    if found is not None:
        if found.folder.parent.resolve() != store.folder.resolve():
            refuse_existing(output)
        require_same(found.state["settings"], settings)
        if found.step > steps:
            raise ConfigError(f"train.steps={steps}, but checkpoint {found.folder} has {found.step} steps behind it.")
    return found

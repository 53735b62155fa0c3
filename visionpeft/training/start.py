"""How a run begins: the processes it has, and the checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from visionpeft.errors import ConfigError
from visionpeft.progress import Progress
from visionpeft.training.checkpoint import Checkpoint, CheckpointStore, read_checkpoint
from visionpeft.training.fingerprint import require_same
from visionpeft.training.lock import CHECKPOINTS, refuse_existing
from visionpeft.training.log import require_trackers
from visionpeft.training.settings import TrainConfig

_PATIENCE = timedelta(hours=2)  # the other processes wait while the main one caches, evaluates and draws previews


def open_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """Return the processes and the device of this run, with the trackers that the settings ask for.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    require_trackers(config.trackers)
    return Accelerator(
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

    What a killed run left half-written is removed, and so is everything after the checkpoint.

    Args:
        output: the run's folder.
        resume: ``never``, ``auto``, or a checkpoint's folder.
        steps: how many the run is to have in all.
        settings: what must be as it was, nested JSON values.
        accelerator: the run's processes.
        progress: is told what is passed over or removed.

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


def best_store(output: Path) -> CheckpointStore:
    """Return where the best adapters of a run are."""
    return CheckpointStore(output / CHECKPOINTS / "best")


def _chosen(
    output: Path, resume: str | Path, steps: int, settings: Mapping[str, Any], progress: Progress
) -> Checkpoint | None:
    store, best = CheckpointStore(output / CHECKPOINTS), best_store(output)
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
    _forget_after(store, best, 0 if found is None else found.step, progress)
    return found


def _forget_after(store: CheckpointStore, best: CheckpointStore, step: int, progress: Progress) -> None:
    for place in (store, best):
        place.clean()
    later = [number for number in store.steps() if number > step]
    if later:
        progress.say(f"Going on from step {step}: the checkpoints of steps {', '.join(map(str, later))} are removed.")
    store.remove(*later)
    best.remove(*(number for number in best.steps() if number > step))

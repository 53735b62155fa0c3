"""Free memory and disk, and what to do when one runs out."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from visionpeft.errors import OutputError, ResourceError, VisionPeftError

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """Space of one kind, in bytes."""

    free: int
    total: int


def main_memory() -> Room:
    """Memory that this process may use: the machine's, or what its container allows where that is less."""
    import psutil

    machine = psutil.virtual_memory()
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is None or used is None or limit >= machine.total:
        return Room(machine.available, machine.total)
    return Room(min(machine.available, max(0, limit - used)), limit)


def _cgroup(name: str) -> int | None:
    """A figure of the control group; None where there is none or no limit."""
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None


def device_memory(device: torch.device) -> Room | None:
    """Memory of a CUDA device as its driver tells it; None for other devices."""
    import torch

    return Room(*torch.cuda.mem_get_info(device)) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has used so far: on a CUDA device what torch allocated there, else main memory."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is not None:  # Windows
        return int(peak)
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def disk(folder: Path) -> Room:
    """Disk space where ``folder`` is, or will be."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return Room(usage.free, usage.total)


def amount(count: float) -> str:
    """A number of bytes for people, in binary units: ``amount(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def explain(error: BaseException) -> VisionPeftError | None:
    """The clear error for memory or disk that ran out, found in ``error`` or its causes; None for anything else."""
    seen: BaseException | None = error
    while seen is not None:
        known = _disk_full(seen) or _out_of_memory(seen)
        if known is not None:
            return known
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def clear_errors() -> Generator[None]:
    """Raise a ResourceError or OutputError in place of what torch and the system raise when memory or disk runs out."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        known = explain(error)
        if known is None:
            raise
        raise known from error


def _disk_full(error: BaseException) -> OutputError | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = f" while writing {error.filename}" if error.filename else ""
    return OutputError(f"The disk is full{where}: free some space or choose another output folder.")


def _out_of_memory(error: BaseException) -> ResourceError | None:
    text = str(error)
    on_device = type(error).__name__ == "OutOfMemoryError"
    on_cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "can't allocate memory" in text
    if not on_device and not on_cpu:
        return None
    where = "The GPU's memory" if on_device else "Main memory"
    wanted = re.search(r"Tried to allocate [^.]*\.?[^.]*", text)
    return ResourceError(
        f"{where} is full{f' ({wanted[0].strip()})' if wanted else ''}. Set train.batch_size lower and "
        "train.gradient_accumulation higher by as much, or train.gradient_checkpointing=true; "
        "then a lower data.resolution, or adapter.targets without the text encoder."
    )

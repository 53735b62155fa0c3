"""The devices of this machine, and what they can compute with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from visionpeft.compute.memory import Room, device_memory, main_memory

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "asimd", "bf16")
"""Instructions that decide how fast a CPU multiplies matrices."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as torch names it: ``cpu``, ``cuda:0``, ``mps``.
        product: the maker's name for it.
        detail: cores and instructions of a CPU, compute capability of a GPU.
        memory: free and total, where it can be told.
    """

    name: str
    product: str
    detail: str
    memory: Room | None


def devices() -> list[Device]:
    """All devices that torch can compute on, fastest kind first; the CPU is the last."""
    return [*_cuda(), *_mps(), _cpu()]


def best_device() -> str:
    """The device to use where none is asked for: the first CUDA device, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def first_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _cuda() -> list[Device]:
    import torch

    found: list[Device] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        detail = f"compute capability {major}.{minor}, CUDA {torch.version.cuda}"
        found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(device), detail, device_memory(device)))
    return found


def _mps() -> list[Device]:
    import torch

    return [Device("mps", "Apple GPU", "Metal", None)] if torch.backends.mps.is_available() else []


def _cpu() -> Device:
    import torch

    facts = _cpuinfo()
    flags = [flag for flag in _CPU_FLAGS if flag in facts.get("flags", facts.get("Features", "")).split()]
    detail = " ".join([f"{usable_cores()} cores, {torch.get_num_threads()} threads", *flags])
    return Device("cpu", facts.get("model name", "CPU"), detail, main_memory())


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine has, under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    """The first processor's facts from Linux's list; empty elsewhere."""
    source = Path("/proc/cpuinfo")
    if not source.exists():
        return {}
    lines = source.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}

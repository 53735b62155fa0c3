"""Kernels that give the same bits each time."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic_kernels(wanted: bool) -> Generator[None]:
    """Use only deterministic kernels inside, where ``wanted``; the CPU's are so anyway for one number of threads.

    Raises:
        RuntimeError: torch's own, where an operation has no deterministic kernel on the device; it names it.
    """
    if not wanted:
        yield
        return
    enabled, warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    benchmark, fill = torch.backends.cudnn.benchmark, memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    memory.fill_uninitialized_memory = False  # a safety net that costs a write of every tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warning)
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = fill

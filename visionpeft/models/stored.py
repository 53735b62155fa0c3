"""In which type a base's weights are stored: read in that type they stay in their files until they are needed."""

from __future__ import annotations

from pathlib import Path

import torch

from visionpeft.safefile import read_header

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_type(place: str | Path) -> torch.dtype | None:
    """Return the one floating type of all weights below a folder; None where there are several, or no such folder.

    The processes of a machine that read a base in this type share its pages in memory; in another each has its own.

    Raises:
        FileFormatError: a file is damaged.
    """
    files = sorted(Path(place).rglob("*.safetensors")) if Path(place).is_dir() else []
    found = {entry.dtype for file in files for entry in read_header(file).tensors.values()} - {"I64", "I32"}
    return _TYPES.get(found.pop()) if len(found) == 1 else None

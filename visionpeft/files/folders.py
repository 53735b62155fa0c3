"""Folders that hold an adapter: peft's, told as far as they can be read, and those of diffusers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from visionpeft import safefile
from visionpeft.adapters.archive import Adapter
from visionpeft.errors import FileFormatError
from visionpeft.files.peft_config import CONFIG, settings_table

DIFFUSERS = "pytorch_lora_weights.safetensors"
"""What diffusers' ``save_lora_weights`` calls its file."""
TENSORS = "adapter_model.safetensors"
"""What peft calls its file."""


def adapter_file(path: Path) -> Path:
    """Return the file of a folder that diffusers' ``save_lora_weights`` wrote; any other path as it is.

    Raises:
        FileFormatError: a folder that holds no adapter; it is told what is there.
    """
    if not path.is_dir():
        return path
    if (path / DIFFUSERS).is_file():
        return path / DIFFUSERS
    if (path / "model_index.json").is_file():
        raise FileFormatError(f"{path} is a whole pipeline, no adapter: extract, merge and generate take such folders")
    there = sorted(file.name for file in path.glob("*.safetensors"))
    named = f"; name one of its files: {', '.join(there[:5])}" if there else ""
    raise FileFormatError(f"{path} holds neither {CONFIG} (a folder of peft's) nor {DIFFUSERS} (diffusers'){named}")


def folder_of_peft(path: Path) -> Path | None:
    """The folder of peft's that a path is, or that it is the file of; None for any other path."""
    if path.is_dir():
        return path if (path / CONFIG).is_file() or any(path.glob(f"*/{CONFIG}")) else None
    return path.parent if path.name == TENSORS and (path.parent / CONFIG).is_file() else None


def files_of(folder: Path) -> list[Path]:
    """The files with tensors of a folder of peft's: its own, or one for each component."""
    places = [folder] if (folder / CONFIG).is_file() else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    return [place / TENSORS for place in places]


def facts_of(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a folder's files say without their tensors, and its settings by "component.name", as text.

    Raises:
        FileFormatError: a file is missing or damaged.
    """
    files = files_of(folder)
    headers = [safefile.read_header(file) for file in files]
    settings: dict[str, str] = {}
    for file in files:
        front = "" if file.parent == folder else f"{file.parent.name}."
        table = settings_table(file.parent / CONFIG)
        settings |= {f"{front}{name}": str(value) for name, value in table.items() if value not in (None, {}, [], "")}
    dtypes = Counter(entry.dtype for header in headers for entry in header.tensors.values())
    return {"file": str(folder), "bytes": sum(f.stat().st_size for f in files), "dtypes": dict(dtypes)}, settings


def read_or_reason(folder: Path) -> Adapter | str:
    """The adapter of a folder of peft's, or why it is inspected only."""
    from visionpeft.files.peft_folder import read_peft

    try:
        return read_peft(folder)
    except FileFormatError as error:
        return str(error)

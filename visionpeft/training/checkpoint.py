"""Checkpoints that are whole or absent, whatever moment the power goes.

A checkpoint is a folder ``step_000400/`` of ``adapter.safetensors`` (ready to use), ``state.safetensors`` (weights,
optimizer, moving average) and ``state.json`` (numbers, and the size and SHA-256 of the others and of itself). It is
written beside, flushed to the disk and renamed; only then do older ones go.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from visionpeft.adapters.archive import Adapter
from visionpeft.errors import FileFormatError, OutputError, did_you_mean
from visionpeft.safefile import load, save, sync_folder, write_atomically

ADAPTER, TENSORS, STATE = "adapter.safetensors", "state.safetensors", "state.json"
_NAME = re.compile(r"step_(\d{6,})")
_ASIDE = ".aside_"  # folders not yet whole, and folders being removed
_MAX_STATE = 64 * 2**20  # bytes of state.json


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found whole.

    Attributes:
        folder: where it is.
        step: how many steps it has behind it.
        state: what the engine noted, JSON values.
    """

    folder: Path
    step: int
    state: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the training state, on the CPU."""
        return load(self.folder / TENSORS)[0]

    def adapter(self) -> Adapter:
        """Return the adapter as it was."""
        return Adapter.load(self.folder / ADAPTER)


class CheckpointStore:
    """The checkpoints below one folder; one process at a time writes to it.

    Args:
        folder: made when the first checkpoint is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self, step: int, adapter: Adapter, state: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> Path:
        """Write the checkpoint of ``step`` whole, in place of one that may be there, and return its folder.

        Raises:
            OutputError: the disk is full, or the folder cannot be written; nothing is left behind.
        """
        target, aside = self.folder / step_name(step), self.folder / f"{_ASIDE}{step_name(step)}"
        try:
            aside.mkdir(parents=True)
            _write(aside, adapter, {"step": step, **state}, tensors)
            self.remove(step)
            aside.rename(target)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise OutputError(
                f"cannot write checkpoint {target}: {error.strerror or error}. Free some space."
            ) from error
        except BaseException:  # an interrupt or a full disk: what is half-written must go all the same
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return target

    def steps(self) -> list[int]:
        """Return the steps of which there are checkpoints, whole or not, in order."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.glob("step_*"))
        return sorted(int(name[1]) for name in names if name)

    def read(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step; raises as ``read_checkpoint``."""
        return read_checkpoint(self.folder / step_name(step))

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None; one line is said about each damaged one passed over."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except FileFormatError as damage:
                say(f"Passed over a damaged checkpoint: {damage}")
        return None

    def remove(self, *steps: int) -> None:
        """Remove checkpoints, each in one move, so that a kill never leaves a part that looks like a checkpoint."""
        for step in steps:
            path, aside = self.folder / step_name(step), self.folder / f"{_ASIDE}old_{step_name(step)}"
            if path.exists():
                path.rename(aside)
                shutil.rmtree(aside)

    def clean(self) -> None:
        """Remove what a killed run left half-written or half-removed."""
        for path in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(path)


def step_name(step: int) -> str:
    """Return the folder's name of a step: ``step_000400``."""
    return f"step_{step:06d}"


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in ``folder`` after comparing every byte with its digest.

    Raises:
        FileFormatError: it is missing, not whole, or damaged; the message names the file.
    """
    if not folder.is_dir():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.glob("step_*")])
        raise FileFormatError(f"there is no checkpoint {folder}.{near}")
    state = _read_state(folder / STATE)
    for name, expected in state["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or _digest(path) != expected["sha256"]:
            raise FileFormatError(f"{path} is damaged or missing: the checkpoint cannot be used, take an older one.")
    return Checkpoint(folder, state["step"], state)


def _write(folder: Path, adapter: Adapter, state: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> None:
    adapter.save(folder / ADAPTER)
    if tensors is not None:
        save(folder / TENSORS, tensors, {})
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in sorted(folder.iterdir())}
    content = {**state, "files": files}
    signed = {**content, "sha256": sha256(_canonical(content)).hexdigest()}
    write_atomically(folder / STATE, [_canonical(signed)])


def _read_state(path: Path) -> dict[str, Any]:
    damage = FileFormatError(f"{path} is damaged or missing: the checkpoint cannot be used, take an older one.")
    if not path.is_file() or path.stat().st_size > _MAX_STATE:
        raise damage
    try:
        parsed: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damage from error
    if not isinstance(parsed, dict):
        raise damage
    content = cast(dict[str, Any], parsed)
    if content.pop("sha256", None) != sha256(_canonical(content)).hexdigest():
        raise damage
    return content


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

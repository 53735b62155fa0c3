"""A store of what is costly to compute, keyed by content: latents and text states are never stale, never another's."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from visionpeft import safefile
from visionpeft.errors import FileFormatError, OutputError

Parts = Mapping[str, str | int | float | bool | None]


def cache_key(parts: Parts) -> str:
    """Return the SHA-256 of ``parts``: all that the stored thing depends on (content, base, settings)."""
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def user_cache(*names: str) -> Path:
    """Return the folder ``names`` in the user's cache of this program (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache", "visionpeft", *names)


class Store:
    """Tensors by the hash of what they were computed from; in memory, and in a folder where one is given.

    A file that is damaged, or that was written for other parts, is computed anew.

    Args:
        folder: where files ``<key>.safetensors`` are kept between runs; None keeps everything in memory.
        room: bytes that are kept in memory at most, the first that come; None is no bound.
    """

    def __init__(self, folder: Path | None = None, room: int | None = None) -> None:
        self._folder, self._room = folder, math.inf if room is None else room
        self._memory: dict[str, dict[str, Tensor]] = {}
        self.computed = 0

    def get(self, parts: Parts, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what is stored for ``parts``, computing and storing it first where it is missing.

        Args:
            parts: everything that the result depends on.
            compute: returns the tensors to store; they are kept on the CPU, detached.

        Raises:
            OutputError: the folder cannot be written (the disk is full, for example).
        """
        key = cache_key(parts)
        found = self._memory.get(key)
        if found is not None:
            return found
        found = self._read(key, parts) or self._computed(key, parts, compute)
        size = sum(tensor.nbytes for tensor in found.values())
        if size <= self._room:
            self._room -= size
            self._memory[key] = found
        return found

    def _computed(self, key: str, parts: Parts, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in compute().items()}
        self.computed += 1
        if self._folder is not None:
            make_folder(self._folder)
            safefile.save(self._folder / f"{key}.safetensors", tensors, {"parts": _canonical(parts)})
        return tensors

    def _read(self, key: str, parts: Parts) -> dict[str, Tensor] | None:
        path = self._folder / f"{key}.safetensors" if self._folder else None
        if path is None or not path.is_file():
            return None
        try:
            tensors, metadata = safefile.load(path)
        except FileFormatError:
            return None
        return tensors if metadata.get("parts") == _canonical(parts) else None


def make_folder(folder: Path) -> Path:
    """Make ``folder`` and those above it where they are missing; return it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made: {error.strerror}. Name another one.") from error
    return folder


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made, before the work that is to be kept in it; nothing is made.

    Raises:
        OutputError: what there is of its path is no folder, or must not be written to.
    """
    above = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not above.is_dir():
        raise OutputError(f"the folder {folder} cannot be made: {above} is a file. Name another one.")
    if not os.access(above, os.W_OK):
        raise OutputError(f"the folder {folder} cannot be made: {above} must not be written to. Name another one.")


def _canonical(parts: Parts) -> str:
    return json.dumps(dict(parts), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

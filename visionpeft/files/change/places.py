"""Where results go: a folder that appears whole or not at all, and several files of which all appear or none."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from visionpeft import safefile
from visionpeft.errors import OutputError


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Generator[Path]:
    """Yield a folder beside ``path`` to fill; it takes that name when all is written, and is gone if anything fails.

    Raises:
        OutputError: something is there already, the folder above is missing, or the disk is full.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or allow overwriting with --overwrite")
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
    try:
        part.mkdir()
        yield part
        safefile.sync_folder(part)
        if path.exists():
            path.rename(old)
        part.rename(path)
        safefile.sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)


def place(folder: Path, target: Path, *, overwrite: bool = False) -> list[Path]:
    """Move the files of a folder into another one; all names are checked before the first is moved.

    Raises:
        OutputError: a name is taken, or a file cannot be moved.
    """
    files = sorted(folder.iterdir())
    for file in files:
        if (target / file.name).exists() and not overwrite:
            raise OutputError(f"{target / file.name} exists: choose another name, or allow overwriting")
    try:
        placed = [file.replace(target / file.name) for file in files]
        safefile.sync_folder(target)
    except OSError as error:
        raise _output_error(target, error) from error
    return placed


@contextmanager
def beside(path: Path) -> Generator[Path]:
    """Yield a hidden folder beside ``path`` for what is not proved yet; it is gone afterwards.

    Raises:
        OutputError: the folder above is missing or not writable.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir()
    except OSError as error:
        raise _output_error(path, error) from error
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"cannot write {path}: the disk (or its quota) is full; free some space and run again")
    if isinstance(error, FileNotFoundError):
        return OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    return OutputError(f"cannot write {path}: {error.strerror or error}")

"""The run's folder: who may write to it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from visionpeft.errors import OutputError

LOCK, CHECKPOINTS, LOG = ".lock", "checkpoints", "log.jsonl"


def refuse_existing(output: Path) -> None:
    """Refuse a folder in which there is anything: a run that has begun, or what is not a run's.

    Raises:
        OutputError: the folder is not empty.
    """
    present = sorted(path.name for path in output.iterdir() if path.name != LOCK) if output.is_dir() else []
    if LOG in present or CHECKPOINTS in present:
        raise OutputError(
            f"{output} already holds a run, which is never overwritten. Go on with it by resume=auto, "
            "or choose another output."
        )
    if present:
        raise OutputError(
            f"{output} is not empty ('{present[0]}' is there), and nothing is written over. Choose another output, or "
            "set resume=auto where it is a run that was stopped before its first checkpoint."
        )


@contextmanager
def locked(output: Path) -> Generator[None]:
    """Hold the folder, made where it is missing, for this process alone; where it holds it already, nothing changes.

    The system gives the lock up when its process ends in whatever way, so a killed run never blocks the next one. A
    folder that was made here and stayed empty is removed again.

    Raises:
        OutputError: another process holds it, or the folder cannot be made.
    """
    path, holder, made = output / LOCK, f"{os.getpid()} on {socket.gethostname()}", not output.exists()
    descriptor = _acquire(output, path, holder)
    if descriptor is None:
        yield
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made and not any(output.iterdir()):
            output.rmdir()


def _acquire(output: Path, path: Path, holder: str) -> int | None:
    """Return the locked file, or None where ``holder`` has it already."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(f"cannot write to the output {output}: {error.strerror or error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as held:
        os.close(descriptor)
        present = path.read_text() if path.exists() else "unknown"
        if present == holder:
            return None
        raise OutputError(
            f"output {output} is in use by process {present}. Wait for it, or choose another output."
        ) from held
    if not _is_at(descriptor, path):  # its holder removed the file between our opening and locking it
        os.close(descriptor)
        return _acquire(output, path, holder)
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    return path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino

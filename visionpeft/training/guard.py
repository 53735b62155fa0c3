"""Several processes live and end together: when one fails, is killed or hangs, all end, and one line says why.

Launchers end all processes when one has ended, but know no reason, and do not see one that hangs. So every process
tells the others once a second, through a store that the main one keeps, how its training thread is; the first that
finds something wrong writes it there, and tells it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from visionpeft.errors import ProcessError, VisionPeftError
from visionpeft.training.checkpoint import CheckpointStore
from visionpeft.training.lock import CHECKPOINTS
from visionpeft.training.processes import Processes
from visionpeft.training.pulse import Pulse

_BEAT, _SILENT, _STILL = 1.0, 25.0, 45.0
"""Seconds between signs of life; without one until a process counts as hanging; without work until it does."""

_GRACE = 5.0
"""Seconds that a process has to end by itself when the run has ended; and a launcher's signal waits for a reason."""

_NONE = "-"


@dataclass(frozen=True)
class _Ending:
    """Why the run ends.

    Attributes:
        rank: of the process that found it, and tells it.
        status: exit status.
        text: one line.
    """

    rank: int
    status: int
    text: str


class Guard:
    """While open, this process ends when another one does, and the others when this one fails.

    It is opened on all processes, which meet there; a process alone needs none, and for it this does nothing.

    Args:
        processes: of the run.
        output: the run's folder, whose newest checkpoint the message names.

    Raises:
        ProcessError: on leaving: another process ended the run, or this one did, which is not the main one.
    """

    def __init__(self, processes: Processes, output: Path) -> None:
        self._processes, self._output = processes, output
        self._left, self._asked = threading.Event(), 0.0
        self._heard: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> Guard:
        if self._processes.world > 1:
            self._open()
        return self

    def _open(self) -> None:
        self._pulse = Pulse()
        self._store = _store(self._processes)
        self._who = dict(enumerate(self._processes.gathered(_me())))
        self._store.set(f"beat{self._processes.rank}", _NONE)
        if self._processes.main:
            self._store.set("ending", _NONE)
        self._processes.wait()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self._former: Any = None
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._note)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._processes.world == 1:
            return
        ending = None if error is None else self._told(error)
        self._left.set()
        self._thread.join()
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
        self._part(ending)
        if ending is not None and (self._processes.rank > 0 or ending.rank > 0 or _lost(error)):
            raise ProcessError(ending.text, ending.status, told=ending.rank != self._processes.rank) from error

    def _note(self, number: int, frame: FrameType | None) -> None:
        """A launcher that has lost a process asks the others to end: the reason first, if there is one."""
        del number, frame
        self._asked = self._asked or time.monotonic()

    def _told(self, error: BaseException) -> _Ending:
        """Why the run ends, now that this process has failed: another process's reason, or this one's."""
        rank, world = self._processes.rank, self._processes.world
        found = self._written_within(_SILENT + _GRACE if _lost(error) else _BEAT * (rank > 0))
        if found is not None:
            return found
        what = str(error) if isinstance(error, VisionPeftError) else f"{type(error).__name__}: {error}"
        status = error.exit_status if isinstance(error, VisionPeftError) else 1
        interrupted = isinstance(error, KeyboardInterrupt)
        told = "interrupted." if interrupted else " ".join(what.split()) if status == 1 else what
        return self._agreed(_Ending(rank, 130 if interrupted else status, f"process {rank} of {world}: {told}"))

    def _written_within(self, patience: float) -> _Ending | None:
        until, found = time.monotonic() + patience, None
        try:
            while (found := self._written()) is None and time.monotonic() < until:
                time.sleep(_BEAT / 10)
        except RuntimeError as fault:  # the store is gone with the main process
            return self._without_store(fault)
        return found

    def _part(self, ending: _Ending | None) -> None:
        """Leave so that the others know; the main process, which keeps the store, after them."""
        rank, world = self._processes.rank, self._processes.world
        try:
            self._store.set(f"beat{rank}", json.dumps(self._pulse.feel(done=True).as_json()))
            waits = self._processes.main or (ending is not None and ending.rank == rank)
            until = time.monotonic() + (_GRACE if ending else _SILENT)
            while waits and time.monotonic() < until and not all(self._has_left(r) for r in range(world)):
                time.sleep(_BEAT / 10)
        except RuntimeError:
            return  # the store is gone with the main process

    def _has_left(self, rank: int) -> bool:
        return self._who[rank].gone() or _done(self._store.get(f"beat{rank}").decode())

    def _watch(self) -> None:
        while not self._left.wait(_BEAT):
            try:
                self._store.set(f"beat{self._processes.rank}", json.dumps(self._pulse.feel().as_json()))
                ending = self._written() or self._diagnosis()
            except RuntimeError as fault:
                ending = self._without_store(fault)
            if ending is not None:
                self._end(ending)
                return
            if self._asked and time.monotonic() - self._asked > _GRACE:
                _leave_at_once("", 128 + signal.SIGTERM)

    def _end(self, ending: _Ending) -> None:
        """Let the training thread fail by itself, as it does in a lost connection; else end the process under it."""
        if not self._left.wait(_GRACE):
            _leave_at_once(ending.text if ending.rank == self._processes.rank else "", ending.status)

    def _written(self) -> _Ending | None:
        found = self._store.get("ending").decode()
        return None if found == _NONE else _Ending(**json.loads(found))

    def _agreed(self, ending: _Ending) -> _Ending:
        """Write an ending where none is written yet; return the one that holds."""
        try:
            held = self._store.compare_set("ending", _NONE, json.dumps(asdict(ending)))
        except RuntimeError:
            return ending  # the store is gone with the main process
        return _Ending(**json.loads(held))

    def _diagnosis(self) -> _Ending | None:
        """What is wrong with another process, if anything is; agreed on with all."""
        now, signs = time.monotonic(), dict[int, dict[str, Any]]()
        for rank, who in self._who.items():
            beat = self._store.get(f"beat{rank}").decode()
            if beat != self._heard.get(rank, ("", 0.0))[0]:
                self._heard[rank] = (beat, now)
            if _done(beat):
                continue
            if who.gone():
                return self._found(rank, "is gone: killed from outside, as for want of memory, or crashed")
            if now - self._heard[rank][1] > _SILENT:
                return self._found(rank, f"has not been heard of for {_SILENT:.0f} s")
            signs[rank] = {} if beat == _NONE else json.loads(beat)
        still = {rank: sign for rank, sign in signs.items() if sign and sign["idle"] > _STILL and not sign["waits"]}
        if not still:
            return None
        rank = max(still, key=lambda rank: still[rank]["idle"])  # others stand still later, as they wait for it
        return self._found(rank, f"has stood still for {still[rank]['idle']:.0f} s at {still[rank]['place']}")

    def _found(self, rank: int, what: str) -> _Ending:
        steps = CheckpointStore(self._output / CHECKPOINTS).steps()
        on = f"resume=auto goes on from step {steps[-1]}." if steps else "No checkpoint was written yet."
        text = f"process {rank} of {self._processes.world} ({self._who[rank]}) {what}. The run has ended; {on}"
        return self._agreed(_Ending(self._processes.rank, 1, text))

    def _without_store(self, fault: RuntimeError) -> _Ending:
        """The main process keeps the store and is lost; the next one tells it."""
        found = self._found(0, f"is gone or hangs ({' '.join(str(fault).split())[:80]})")
        return _Ending(1, found.status, found.text)


@dataclass(frozen=True)
class _Who:
    """A process: where it runs, and its number there."""

    host: str
    namespace: str
    pid: int

    def gone(self) -> bool:
        """Whether it is known to have ended; False for what runs where it cannot be seen."""
        here = _me()
        if (self.host, self.namespace) != (here.host, here.namespace):
            return False
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def _me() -> _Who:
    namespace = Path("/proc/self/ns/pid")  # containers have numbers of their own
    return _Who(socket.gethostname(), str(namespace.readlink()) if namespace.exists() else "", os.getpid())


def _store(processes: Processes) -> TCPStore:
    """A store of our own: that of torch is locked while it waits, and ends with whoever keeps it."""
    host, patience = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=_SILENT)
    kept = TCPStore(host, 0, None, True, patience, wait_for_workers=False) if processes.main else None
    port = processes.from_main(0 if kept is None else kept.port)
    return kept or TCPStore(host, port, None, False, patience, wait_for_workers=False)


def _done(beat: str) -> bool:
    return beat != _NONE and bool(json.loads(beat)["done"])


def _lost(error: BaseException | None) -> bool:
    """Whether an error is that another process cannot be reached: it comes out of torch's way to talk to it."""
    if not isinstance(error, RuntimeError):
        return False
    trace, last = error.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_code.co_filename, trace.tb_next
    return isinstance(error, torch.distributed.DistError) or str(Path("torch", "distributed")) in last


def _leave_at_once(line: str, status: int) -> None:
    """End this process whatever its training thread does."""
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
    sys.stderr.write(f"{shown}visionpeft: {line}\n" if line else shown)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)

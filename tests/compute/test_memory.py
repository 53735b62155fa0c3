"""Free memory and disk, and the clear line when one runs out."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from visionpeft.compute import memory
from visionpeft.compute.memory import amount, clear_errors, disk, explain, main_memory
from visionpeft.errors import OutputError, ResourceError


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (5 * 2**40, "5.0 TiB")]
)
def test_amounts_are_for_people(count: int, text: str):
    assert amount(count) == text


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = main_memory()
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert main_memory() == memory.Room(600, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory().total == whole.total


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path):
    assert disk(tmp_path / "a" / "b").total == disk(tmp_path).total > 0


def test_real_exhaustion_is_explained():
    with pytest.raises(ResourceError, match=r"Main memory is full.*train\.batch_size"), clear_errors():
        torch.empty(2**50, dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MemoryError(), ResourceError, "Main memory is full."),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"),
            ResourceError,
            "The GPU's memory is full (Tried to allocate 2.50 GiB).",
        ),
        (OSError(errno.ENOSPC, "No space", "a/b"), OutputError, "The disk is full while writing a/b:"),
        (OSError(errno.EDQUOT, "Quota"), OutputError, "The disk is full: free"),
    ],
)
def test_what_runs_out_is_named_with_a_remedy(error: Exception, kind: type[Exception], text: str):
    known = explain(error)
    assert type(known) is kind
    assert str(known).startswith(text)
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert str(explain(wrapped)) == str(known)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EACCES, "no"), RuntimeError("shape mismatch")])
def test_other_errors_stay_what_they_are(error: Exception):
    assert explain(error) is None
    with pytest.raises(type(error)) as caught, clear_errors():
        raise error
    assert caught.value is error

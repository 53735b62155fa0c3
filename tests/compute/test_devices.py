"""The devices of this machine."""

from __future__ import annotations

import os

import pytest
import torch

from visionpeft.compute.devices import best_device, devices, first_process, usable_cores


def test_the_cpu_is_always_there_and_last():
    cpu = devices()[-1]
    assert cpu.name == "cpu"
    assert f"{usable_cores()} cores" in cpu.detail
    assert cpu.memory is not None
    assert len(devices()) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()


def test_the_best_device_can_compute():
    assert float(torch.ones(2, device=best_device()).sum()) == 2.0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_those_that_may_be_used():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    assert first_process()
    monkeypatch.setenv("RANK", "1")
    assert not first_process()

"""A process that fails, is killed or hangs ends the run on all of them, one line says why, and the run goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.place import ROOT
from tests.several import apart, free_port, last_adapter, losses
from tests.training.toy import Toy
from tests.training.troubled import CONFIG
from visionpeft.training.engine import fit

LIMIT = 60.0


def begin(folder, trouble, rank, world, batch):
    """Start so many processes as a launcher does."""
    shared = {
        **os.environ, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.training.troubled", str(folder), trouble, str(rank), str(batch)]
    return [
        subprocess.Popen(
            command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, text=True, stderr=subprocess.PIPE, cwd=ROOT
        )
        for r in range(world)
    ]


def ended(processes, besides=()):
    """What all processes came to, but for those that hang for good: their exit statuses and lines."""
    said, statuses = [], []
    for rank, process in enumerate(processes):
        if rank in besides:
            continue
        said += process.communicate(timeout=240)[1].splitlines()
        statuses.append(process.returncode)
    for rank in besides:
        processes[rank].kill()
        processes[rank].wait()
    return statuses, [line for line in said if line.startswith("visionpeft: ")]


def until_checkpoint(folder, processes):
    while not list(folder.glob("checkpoints/step_*")) and processes[0].poll() is None:
        time.sleep(0.05)
    return time.monotonic()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    fit(Toy(dropout=0.0), CONFIG.model_copy(update={"batch_size": 8}), folder)
    return folder


@pytest.mark.parametrize(
    ("trouble", "rank", "wanted"),
    [
        ("error", 1, r"process 1 of 2: photos/seven\.png cannot be read: give another picture\."),
        ("memory", 1, r"process 1 of 2: out of memory while training\. Set train\.batch_size=2"),
        ("killed", 1, r"process 1 of 2 \(pid \d+ on .*\) is gone: .*resume=auto goes on from step 10\."),
        ("killed", 0, r"process 0 of 2 \(pid \d+ on .*\) is gone.*resume=auto goes on from step 10\."),
        ("stopped", 1, r"process 1 of 2 \(pid \d+ on .*\) has not been heard of for 8 s.*goes on from step 10\."),
        ("still", 1, r"process 1 of 2 \(pid \d+ on .*\) has stood still for \d+ s at .* goes on from step 10\."),
    ],
)
def test_all_end_with_one_reason_and_another_number_goes_on(tmp_path, straight, trouble, rank, wanted):
    processes = begin(tmp_path, trouble, rank, 2, 4)
    begun = until_checkpoint(tmp_path, processes)
    statuses, lines = ended(processes, besides=(1,) if trouble == "stopped" else ())
    assert time.monotonic() - begun < LIMIT
    assert 0 not in statuses
    assert len(lines) == 1, lines
    assert re.fullmatch(f"visionpeft: {wanted}.*", lines[0]), lines[0]
    if rank == 1 and trouble in ("error", "killed"):
        world = 4 if trouble == "error" else 1
        again = begin(tmp_path, "none", 0, world, 4)
        assert ended(again) == ([0] * world, [])
        assert len(losses(tmp_path)) == CONFIG.steps
        assert float((losses(tmp_path) - losses(straight)).abs().max()) < 1e-4
        assert apart(last_adapter(straight), last_adapter(tmp_path)) < 1e-5


def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path):
    statuses, lines = ended(begin(tmp_path, "asked", 1, 2, 4))
    assert statuses == [130, 130]
    assert len(lines) == 1
    assert "now saved; resume=auto goes on" in lines[0]
    state = json.loads((sorted(tmp_path.glob("checkpoints/step_*"))[-1] / "state.json").read_text())
    assert state["step"] in (12, 13)


def test_launchers_end_with_the_reason(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    command += ["-m", "tests.training.troubled", str(tmp_path), "killed", "1", "4"]
    run = subprocess.Popen(
        command, cwd=ROOT, text=True, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    said = run.communicate(timeout=240)[1]
    assert run.returncode not in (0, -signal.SIGKILL)
    lines = [line for line in said.splitlines() if line.startswith("visionpeft: ")]
    assert len(lines) == 1, said
    assert "process 1 of 2" in lines[0]
    assert "is gone" in lines[0]

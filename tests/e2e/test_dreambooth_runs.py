"""Whole DreamBooth runs as a user starts them: the script, several processes, kills, a full disk."""

import random
import time
from pathlib import Path

import pytest

from tests.e2e.place import ROOT, furnish, losses, start

SCRIPT = str(ROOT / "scripts" / "train_dreambooth.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = furnish(tmp_path_factory.mktemp("runs"))
    process = start(folder, SCRIPT, "job.yaml")
    assert process.wait(240) == 0, process.stderr.read()
    return folder


def test_two_processes_give_the_loss_curve_of_one(place: Path):
    port = str(random.randint(20000, 60000))
    launch = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port)
    process = start(place, *launch, SCRIPT, "job.yaml", "train.batch_size=2", "output=two")
    assert process.wait(240) == 0, process.stderr.read()
    one, two = losses(place / "out" / "log.jsonl"), losses(place / "two" / "log.jsonl")
    assert len(one) == len(two) == 50
    assert float((one - two).abs().max()) < 1e-4


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(place: Path):
    rng, killed = random.Random(0), 0
    for _ in range(12):
        process = start(place, SCRIPT, "job.yaml", "output=killed", "resume=auto")
        if killed < 3:
            log = place / "killed" / "log.jsonl"
            begun = log.stat().st_size if log.exists() else 0
            wait_for_growth(log, begun, process)
            time.sleep(rng.random() * 0.7)
            killed += process.poll() is None
            process.kill()
            process.wait()
        elif process.wait(240) == 0:
            break
    assert killed == 3
    whole = (place / "out" / "adapter.safetensors").read_bytes()
    assert (place / "killed" / "adapter.safetensors").read_bytes() == whole


def wait_for_growth(log: Path, size: int, process) -> None:
    """Wait until the run has begun to write its log, or has ended."""
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        if log.exists() and log.stat().st_size != size:
            return
        time.sleep(0.05)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(place: Path):
    limited = (
        "import resource, sys; from visionpeft.cli import run;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.exit(run(['train', 'job.yaml', 'output=full', 'preview=null', 'adapter.rank=16']))"
    )
    process = start(place, "-c", limited)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 2, said
    lines = [line for line in said.splitlines() if line.startswith("visionpeft: ")]
    assert len(lines) == 1
    assert "full" in lines[0]
    assert not list((place / "full").rglob("*.part"))
    assert not list((place / "full").rglob("adapter.safetensors"))

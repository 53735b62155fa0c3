"""Two processes with half the batch each are one process with all of it."""

import json
import os
import socket
import subprocess
import sys

import torch

from tests.training.toy import Toy
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig

CONFIG = TrainConfig(
    steps=50, batch_size=4, gradient_accumulation=2, learning_rate=0.02, warmup=5, ema=0.95,
    log_every=1, evaluate_every=25, checkpoint_every=20,
)  # fmt: skip
WORKER = """
import sys
from pathlib import Path
from tests.training.toy import Toy
from tests.training.test_processes import CONFIG, fit
for steps in (30, 50):  # going on after a stop
    half = CONFIG.model_copy(update={"batch_size": 2, "steps": steps})
    fit(Toy(dropout=0.0), half, Path(sys.argv[1]), resume="auto", preview_every=25)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_on_two(folder):
    """Start two processes as torchrun does."""
    shared = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], env={**shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if line["kind"] == "train"], dtype=torch.float64)


def test_the_loss_curve_of_one_process(tmp_path):
    alone = fit(Toy(dropout=0.0), CONFIG, tmp_path / "one")
    run_on_two(tmp_path / "two")
    assert len(losses(tmp_path / "two")) == 50
    assert torch.allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=0, atol=1e-4)
    state = fit(Toy(dropout=0.0), CONFIG, tmp_path / "two", resume="auto")
    for name, tensor in alone.last.tensors.items():
        assert torch.allclose(state.last.tensors[name], tensor, rtol=1e-5, atol=1e-6)

"""A run that is killed at random moments, saves included, resumes every time and ends with the same bytes."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from tests.training.toy import Toy, bytes_of
from visionpeft.errors import OutputError
from visionpeft.training.engine import fit
from visionpeft.training.lock import locked
from visionpeft.training.settings import TrainConfig

CONFIG = TrainConfig(steps=400, learning_rate=0.01, ema=0.9, checkpoint_every=1, evaluate_every=5, log_every=7)
KILLS = 12


CALM = CONFIG.model_copy(update={"checkpoint_every": 0})  # the same steps, sooner done


def run(folder: str, config: TrainConfig) -> None:
    result = fit(Toy(), config, Path(folder), resume="auto", preview_every=20)
    result.adapter.save(Path(folder) / "adapter.safetensors")


def hold(folder: str, ready) -> None:
    with locked(Path(folder)):
        ready.set()
        ready.wait(60)
        time.sleep(60)


@pytest.fixture(scope="module")
def processes():
    """Processes forked from one that has imported torch and done nothing: quick to start, and safe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.toy", "visionpeft.training.engine", "torch._dynamo"])
    return context


def newest(folder: Path) -> str:
    return max((p.name for p in folder.glob("checkpoints/step_*")), default="")


def killed_after_some_progress(process, folder: Path, moment: float) -> bool:
    """Let the process write a checkpoint, kill it ``moment`` seconds later, and say whether it still ran."""
    before = newest(folder)
    process.start()
    while process.is_alive() and newest(folder) == before:
        time.sleep(0.001)
    process.join(moment)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def test_kills_at_random_moments(processes, tmp_path):
    straight = fit(Toy(), CALM, tmp_path / "straight")
    folder = tmp_path / "killed"
    moments = random.Random(0)
    interrupted = sum(
        killed_after_some_progress(process, folder, moments.uniform(0, 0.02))
        for process in [processes.Process(target=run, args=(str(folder), CONFIG)) for _ in range(KILLS)]
    )
    assert interrupted >= 10
    last = processes.Process(target=run, args=(str(folder), CALM))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert (folder / "adapter.safetensors").read_bytes() == bytes_of(straight.adapter, tmp_path)
    assert not list(folder.rglob(".aside_*"))
    state = f"checkpoints/step_{CONFIG.steps:06d}/state.safetensors"
    assert (folder / state).read_bytes() == (tmp_path / "straight" / state).read_bytes()


def test_a_folder_in_use_is_refused_and_a_dead_holder_forgotten(processes, tmp_path):
    ready = processes.Event()
    holder = processes.Process(target=hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match=f"in use by process {holder.pid} on "):
        fit(Toy(), CONFIG, tmp_path)
    holder.kill()
    holder.join()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        fit(Toy(), CONFIG.model_copy(update={"steps": 1}), tmp_path)  # in the same process: no obstacle
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()

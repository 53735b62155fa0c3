"""How work and a step's samples are shared out over processes, without starting any."""

import threading
import time
from pathlib import Path

import pytest
import torch

from visionpeft.errors import ConfigError
from visionpeft.progress import SilentProgress
from visionpeft.training.checkpoint import Checkpoint
from visionpeft.training.log import Window, merge_windows, sum_windows
from visionpeft.training.processes import ALONE, Processes
from visionpeft.training.pulse import Pulse
from visionpeft.training.settings import TrainConfig
from visionpeft.training.start import as_begun, open_accelerator


@pytest.mark.parametrize(("count", "world"), [(0, 3), (2, 4), (10, 3), (64, 8)])
def test_shares_are_all_once_in_order_and_nearly_equal(count, world):
    shares = [Processes(rank, world).mine(count) for rank in range(world)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone_does_everything():
    assert ALONE.shared(3, lambda mine: [index**2 for index in mine]) == [0, 1, 4]
    assert ALONE.gathered("x") == ["x"]
    assert ALONE.from_main("y") == "y"
    ALONE.wait()


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def begun(config, processes):
    settings = {"train": config.fixed(processes)}
    return Checkpoint(Path("step_000004"), 4, {"settings": settings, "processes": processes})


@pytest.mark.parametrize(
    ("size", "accumulation", "then", "now", "split"),
    [(2, 1, 2, 1, (2, 2)), (2, 1, 2, 4, (1, 1)), (4, 2, 2, 1, (4, 4)), (6, 1, 2, 3, (4, 1)), (3, 1, 4, 2, (3, 2)),
     (4, 1, 3, 2, (2, 3)), (2, 2, 2, 2, (2, 2))],
)  # fmt: skip
def test_a_step_keeps_its_samples_on_another_number_of_processes(size, accumulation, then, now, split):
    config, heard = TrainConfig(batch_size=size, gradient_accumulation=accumulation), Lines()
    found = as_begun(config, begun(config, then), now, heard)
    assert (found.batch_size, found.gradient_accumulation) == split
    assert found.global_batch(now) == config.global_batch(then)
    assert found.fixed(now) == config.fixed(then)
    assert [f"{config.global_batch(then)} samples as before" in line for line in heard.said] == [True] * (then != now)


def test_what_cannot_be_shared_is_refused_and_a_changed_batch_left_to_the_comparison():
    config = TrainConfig(batch_size=2)
    with pytest.raises(ConfigError, match=r"8 samples a step on 4 processes, which 3 cannot share.*1, 2, 4, 8"):
        as_begun(config, begun(config, 4), 3, Lines())
    changed = config.model_copy(update={"batch_size": 3})
    assert as_begun(changed, begun(config, 4), 2, Lines()) == changed
    assert as_begun(config, None, 3, Lines()) == config
    old = Checkpoint(Path("step_000004"), 4, {"settings": {"train": config.fixed(4)}})
    assert as_begun(config, old, 2, Lines()) == config


def test_windows_of_processes_are_saved_as_one():
    windows = [Window(), Window()]
    for number, window in enumerate(windows):
        window.add({"loss": torch.tensor(3.0 + number)}, 2.0)
    whole = Window()
    whole.restore(sum_windows([window.tensors() for window in windows]), torch.device("cpu"))
    assert merge_windows([whole.take(), {}]) == merge_windows([window.take() for window in windows]) == {"loss": 1.75}


def test_the_pulse_tells_work_from_standing_still():
    signs, ready, done = [], threading.Event(), threading.Event()

    def watched():
        pulse = Pulse()
        ready.pulse = pulse
        ready.set()
        done.wait()

    thread = threading.Thread(target=watched)
    thread.start()
    ready.wait()
    until = time.monotonic() + 30
    while ready.pulse.feel().idle < 0.3 and time.monotonic() < until:  # it has still to come to its rest
        time.sleep(0.05)
    signs.append(ready.pulse.feel())
    done.set()
    thread.join()
    assert signs[0].idle > 0.2
    assert not signs[0].waits
    assert signs[0].place.startswith("threading.py:")
    mine = Pulse()
    mine.feel()
    sum(range(10**6))
    sign = mine.feel()
    assert sign.idle == 0
    assert "feel" in sign.place or "test_sharing" in sign.place


def test_one_process_where_several_were_asked_for_is_refused(monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"started one.*--multi_gpu"):
        open_accelerator(TrainConfig(), tmp_path)

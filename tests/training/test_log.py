import json
import signal
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from accelerate import Accelerator

from tests.training.toy import Toy
from visionpeft.errors import MissingExtraError
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import StopRequest
from visionpeft.training.log import RunLog, Window, merge_windows, require_trackers
from visionpeft.training.settings import TrainConfig


def installed(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_a_continued_log_is_cut_back_and_a_torn_line_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0, "kind": "a"}\n{"step": 4, "kind": "a"}\n{"step": 5, "kind": "a"}\n{"step": 4, "ki')
    log = RunLog(path, Accelerator(cpu=True), {}, kept_steps=4)
    log.write(5, "train", {"loss": 0.5})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "kind": "a"},
        {"step": 4, "kind": "a"},
        {"step": 5, "kind": "train", "loss": 0.5},
    ]


def test_a_new_log_begins_empty(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n')
    RunLog(path, Accelerator(cpu=True), {}, kept_steps=0).close()
    assert path.read_bytes() == b""


def test_windows_are_means_and_survive_a_stop():
    window = Window()
    window.add({"loss": torch.tensor(6.0)}, torch.tensor(2.0))
    window.add({"loss": torch.tensor(1.0), "rare": torch.tensor(5.0)})
    again = Window()
    again.restore(window.tensors(), torch.device("cpu"))
    taken = again.take()
    assert taken == window.take() == {"loss": (7.0, 3.0), "rare": (5.0, 1.0)}
    assert window.take() == {}
    assert merge_windows([taken, {"loss": (2.0, 1.0)}]) == {"loss": 9 / 4, "rare": 5.0}


@pytest.mark.skipif(not installed("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_gets_figures_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(steps=4, log_every=2, evaluate_every=4, trackers=("tensorboard",))
    fit(Toy(), config, tmp_path, preview_every=4)
    events = EventAccumulator(str(tmp_path / "visionpeft")).Reload()
    assert {"train/loss", "train/learning_rate/body", "evaluate/fit"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert events.Tags()["images"] == ["grid"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(tmp_path, name):
    if installed(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(MissingExtraError, match=rf"pip install 'visionpeft\[{name}\]'"):
        require_trackers([name])
    with pytest.raises(MissingExtraError):
        fit(Toy(), TrainConfig(trackers=(name,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_second_signal_is_not_held_back():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_not_a_number_is_null_in_the_log(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", Accelerator(cpu=True), {}, kept_steps=0)
    log.write(1, "evaluate", {"precision": float("nan"), "recall": 0.5})
    log.close()
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "step": 1, "kind": "evaluate", "precision": None, "recall": 0.5,
    }  # fmt: skip

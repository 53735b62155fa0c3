"""A run that is stopped anywhere and goes on is, to the last bit, the run that was never stopped."""

import json
import signal

import pytest
import torch

from tests.training.toy import Toy, bytes_of
from visionpeft.errors import ConfigError, FileFormatError, OutputError
from visionpeft.progress import SilentProgress
from visionpeft.training.engine import fit
from visionpeft.training.interrupt import TrainingInterruptedError
from visionpeft.training.optim import OPTIMIZERS
from visionpeft.training.settings import TrainConfig

STEPS = 9
FULL = TrainConfig(
    steps=STEPS, batch_size=3, gradient_accumulation=2, learning_rate={"body": 0.01, "head": 0.02}, schedule="cosine",
    warmup=2, ema=0.9, seed=5, checkpoint_every=4, evaluate_every=3, log_every=4,
)  # fmt: skip


class Stopping(Toy):
    """Asks for a stop, as Ctrl-C does, while a step is being made; a recorded loss would not be asked again."""

    stop_at = -1

    def batch(self, positions):
        if len(self.seen) == self.stop_at * FULL.gradient_accumulation:
            signal.raise_signal(signal.SIGINT)
        return super().batch(positions)


class Listening(SilentProgress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def comparable_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds_per_step", "samples_per_second")} for line in lines]


def everything(folder, step=STEPS):
    whole = folder / "checkpoints" / f"step_{step:06d}"
    return [(whole / name).read_bytes() for name in ("adapter.safetensors", "state.safetensors", "state.json")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    result = fit(Toy(), FULL, folder)
    return folder, result


@pytest.mark.parametrize("stop", range(STEPS - 1))
def test_stopped_after_any_step(straight, tmp_path, stop):
    task = Stopping()
    task.stop_at = stop
    with pytest.raises(TrainingInterruptedError, match=f"after step {stop + 1}"):
        fit(task, FULL, tmp_path)
    torch.manual_seed(stop)  # the state of the global generator must not matter
    result = fit(Toy(), FULL, tmp_path, resume="auto")
    assert everything(tmp_path) == everything(straight[0])
    assert comparable_log(tmp_path) == comparable_log(straight[0])
    assert result.history == straight[1].history
    assert bytes_of(result.adapter, tmp_path) == bytes_of(straight[1].adapter, tmp_path)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw8bit"])
def test_every_optimizer_goes_on(tmp_path, name):
    config = FULL.model_copy(update={"optimizer": FULL.optimizer.model_copy(update={"name": name})})
    fit(Toy(), config, tmp_path / "straight")
    task = Stopping()
    task.stop_at = 4
    with pytest.raises(TrainingInterruptedError):
        fit(task, config, tmp_path / "stopped")
    fit(Toy(), config, tmp_path / "stopped", resume="auto")
    assert everything(tmp_path / "stopped") == everything(tmp_path / "straight")


def test_previews_and_evaluations_leave_no_trace(straight, tmp_path):
    quiet = FULL.model_copy(update={"evaluate_every": 0})
    fit(Toy(), quiet, tmp_path / "quiet")
    fit(Toy(), FULL, tmp_path / "busy", preview_every=1)
    assert everything(tmp_path / "quiet")[:2] == everything(tmp_path / "busy")[:2] == everything(straight[0])[:2]
    assert len(list((tmp_path / "busy" / "previews").iterdir())) == STEPS + 1


def test_the_run_is_really_random(tmp_path, straight):
    other = fit(Toy(), FULL.model_copy(update={"seed": 6}), tmp_path)
    assert bytes_of(other.last, tmp_path) != bytes_of(straight[1].last, tmp_path)
    without = fit(Toy(dropout=0.0), FULL, tmp_path / "x")
    assert bytes_of(without.last, tmp_path) != bytes_of(straight[1].last, tmp_path)


def test_the_callers_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    fit(Toy(), FULL.model_copy(update={"steps": 2}), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_deterministic_kernels_are_asked_for_inside_only(tmp_path):
    class Asking(Toy):
        def loss(self, batch, rng):
            self.inside = torch.are_deterministic_algorithms_enabled()
            return super().loss(batch, rng)

    for wanted in (True, False):
        task = Asking()
        fit(task, FULL.model_copy(update={"steps": 1, "deterministic": wanted}), tmp_path / str(wanted))
        assert task.inside == wanted
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_finished_run_is_only_read(straight, tmp_path):
    fit(Toy(), FULL, tmp_path)
    before = everything(tmp_path)
    task = Toy()
    result = fit(task, FULL, tmp_path, resume="auto")
    assert task.seen == []
    assert task.looks == []
    assert everything(tmp_path) == before
    assert bytes_of(result.last, tmp_path) == bytes_of(straight[1].last, tmp_path)


def test_more_steps_go_on(tmp_path):
    config = FULL.model_copy(update={"schedule": "constant"})
    fit(Toy(), config, tmp_path / "long")
    fit(Toy(), config.model_copy(update={"steps": 5}), tmp_path / "short")
    fit(Toy(), config, tmp_path / "short", resume="auto")
    assert everything(tmp_path / "short")[1] == everything(tmp_path / "long")[1]


def test_fewer_steps_than_made_are_refused(tmp_path):
    fit(Toy(), FULL, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.steps=5"):
        fit(Toy(), FULL.model_copy(update={"steps": 5}), tmp_path, resume="auto")


def test_a_named_checkpoint_goes_on_and_later_ones_go(straight, tmp_path):
    fit(Toy(), FULL, tmp_path)
    heard = Listening()
    fit(Toy(), FULL, tmp_path, resume=tmp_path / "checkpoints" / "step_000008", progress=heard)
    assert heard.lines == ["Going on from step 8: the checkpoints of steps [9] are removed."]
    assert everything(tmp_path) == everything(straight[0])


def test_a_checkpoint_of_another_folder(straight, tmp_path):
    source = straight[0] / "checkpoints" / "step_000008"
    fit(Toy(), FULL, tmp_path / "new", resume=source)
    assert everything(tmp_path / "new")[:2] == everything(straight[0])[:2]
    with pytest.raises(OutputError, match="already holds a run"):
        fit(Toy(), FULL, tmp_path / "new", resume=source)


@pytest.mark.parametrize("name", ["adapter.safetensors", "state.safetensors", "state.json"])
def test_damage_is_passed_over(straight, tmp_path, name):
    fit(Toy(), FULL, tmp_path)
    damaged = tmp_path / "checkpoints" / "step_000009"
    data = bytearray((damaged / name).read_bytes())
    data[-20] ^= 1
    (damaged / name).write_bytes(data)
    with pytest.raises(FileFormatError, match=f"{name} is damaged"):
        fit(Toy(), FULL, tmp_path, resume=damaged)
    heard = Listening()
    fit(Toy(), FULL, tmp_path, resume="auto", progress=heard)
    assert len(heard.lines) == 2
    assert f"{name} is damaged" in heard.lines[0]
    assert everything(tmp_path) == everything(straight[0])


def test_a_lost_best_adapter_is_said(tmp_path):
    fit(Toy(figures={0: {"fit": 0.0}, 3: {"fit": 2.0}, 6: {"fit": 1.0}, 9: {"fit": 1.5}}), FULL, tmp_path)
    (tmp_path / "checkpoints" / "best" / "step_000003" / "adapter.safetensors").unlink()
    heard = Listening()
    task = Toy(figures={9: {"fit": 1.5}})
    result = fit(task, FULL, tmp_path, resume=tmp_path / "checkpoints" / "step_000008", progress=heard)
    assert "best adapter so far is lost" in heard.lines[0]
    assert result.best_step == 9


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "train.seed: 5 -> 6"),
        ({"batch_size": 4}, "train.global_batch: 6 -> 8"),
        ({"ema": None}, "train.ema: 0.9 -> null"),
        ({"learning_rate": 0.01}, "train.learning_rate"),
        ({"schedule": "linear"}, 'train.schedule: "cosine" -> "linear"'),
    ],
)
def test_other_settings_are_refused(tmp_path, change, named):
    fit(Toy(), FULL.model_copy(update={"steps": 4}), tmp_path)
    with pytest.raises(ConfigError) as caught:
        fit(Toy(), FULL.model_copy(update=change), tmp_path, resume="auto")
    assert named in str(caught.value)


def test_the_callers_settings_are_compared_too(tmp_path):
    short = FULL.model_copy(update={"steps": 4})
    fit(Toy(), short, tmp_path, settings={"adapter": {"rank": 4}})
    fit(Toy(), FULL, tmp_path, settings={"adapter": {"rank": 4}}, resume="auto")
    with pytest.raises(ConfigError, match=r"adapter\.rank: 4 -> 8"):
        fit(Toy(), FULL, tmp_path, settings={"adapter": {"rank": 8}}, resume="auto")
    with pytest.raises(ConfigError, match="samples: 23 -> 24"):
        fit(Toy(size=24), FULL, tmp_path, settings={"adapter": {"rank": 4}}, resume="auto")


def test_the_same_batch_split_otherwise_goes_on(tmp_path):
    fit(Toy(), FULL.model_copy(update={"steps": 4}), tmp_path)
    split = FULL.model_copy(update={"batch_size": 1, "gradient_accumulation": 6, "keep_checkpoints": 5})
    assert fit(Toy(), split, tmp_path, resume="auto").steps == STEPS


def test_an_existing_run_is_never_overwritten(tmp_path):
    fit(Toy(), FULL.model_copy(update={"steps": 2}), tmp_path)
    before = everything(tmp_path, 2)
    with pytest.raises(OutputError, match=r"resume=auto"):
        fit(Toy(), FULL, tmp_path)
    assert everything(tmp_path, 2) == before


def test_missing_checkpoint_names_the_nearest(tmp_path):
    fit(Toy(), FULL.model_copy(update={"steps": 4}), tmp_path)
    with pytest.raises(FileFormatError, match="Did you mean 'step_000004'"):
        fit(Toy(), FULL, tmp_path, resume=tmp_path / "checkpoints" / "step_00004")


def test_another_model_is_refused(tmp_path):
    fit(Toy(), FULL.model_copy(update={"steps": 5}), tmp_path)
    wider = Toy()
    wider.head.lora_A = torch.nn.Parameter(torch.zeros(3, 16))
    with pytest.raises(FileFormatError, match=r"parameter\.head\.0"):
        fit(wider, FULL, tmp_path, resume=tmp_path / "checkpoints" / "step_000004")
    assert (tmp_path / "checkpoints" / "step_000005").is_dir()  # refused before anything was removed

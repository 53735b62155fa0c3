import math

import pytest

from tests.training.toy import Toy, bytes_of
from visionpeft.errors import TrainingError
from visionpeft.training.choice import Choice
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig

CONFIG = TrainConfig(steps=12, learning_rate=0.05, evaluate_every=2, checkpoint_every=4, keep_checkpoints=1)


def figures(*values):
    return {2 * i: {"fit": value} for i, value in enumerate(values)}


def test_only_eligible_numbers_after_the_start_win():
    choice = Choice("fit")
    assert not choice.take(0, {"fit": 9.0})
    assert not choice.take(1, {"fit": 8.0, "eligible": 0.0})
    assert not choice.take(2, {"fit": math.nan})
    assert choice.take(3, {"fit": 1.0, "eligible": 1.0})
    assert not choice.take(4, {"fit": 1.0})
    assert (choice.best_step, choice.best_value, choice.misses) == (3, 1.0, 1)
    assert Choice.from_json(choice.to_json(), "fit") == choice
    assert Choice.from_json(choice.to_json(), "other").best_step is None
    assert not Choice(None).take(1, {"fit": 1.0})


def test_the_best_adapter_survives_and_comes_back(tmp_path):
    result = fit(Toy(figures=figures(9, 1, 5, 4, 3, 2, 1)), CONFIG, tmp_path / "run")
    short = fit(Toy(), CONFIG.model_copy(update={"steps": 4, "evaluate_every": 0}), tmp_path / "short")
    assert result.best_step == 4
    assert bytes_of(result.adapter, tmp_path) == bytes_of(short.last, tmp_path) != bytes_of(result.last, tmp_path)
    assert [p.name for p in (tmp_path / "run" / "checkpoints" / "best").iterdir()] == ["step_000004"]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step_*")] == ["step_000012"]
    again = fit(Toy(), CONFIG, tmp_path / "run", resume="auto")
    assert bytes_of(again.adapter, tmp_path) == bytes_of(result.adapter, tmp_path)
    assert again.history == result.history
    assert [line["step"] for line in result.history] == [0, 2, 4, 6, 8, 10, 12]


def test_nothing_eligible_gives_the_last(tmp_path):
    nowhere = {step: {"fit": 1.0, "eligible": 0.0} for step in range(0, 13, 2)}
    result = fit(Toy(figures=nowhere), CONFIG, tmp_path)
    assert result.best_step is None
    assert result.adapter is result.last


def test_early_stop(tmp_path):
    patient = CONFIG.model_copy(update={"early_stop": 2})
    task = Toy(figures=figures(0, 1, 2, 1, 2, 9, 9))
    result = fit(task, patient, tmp_path)
    assert (result.steps, result.best_step) == (8, 4)
    assert (tmp_path / "checkpoints" / "step_000008").is_dir()
    assert fit(task, patient, tmp_path, resume="auto").steps == 8
    assert fit(task, CONFIG, tmp_path, resume="auto").steps == 12


def test_a_metric_that_is_not_evaluated_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"'fid'.*fit"):
        fit(Toy(metric="fid"), CONFIG, tmp_path)


def test_averaged_weights_are_what_is_kept(tmp_path):
    plain = fit(Toy(metric=None), CONFIG, tmp_path / "plain")
    averaged = fit(Toy(metric=None), CONFIG.model_copy(update={"ema": 0.9}), tmp_path / "averaged")
    far = float((plain.last.tensors["head.layer.lora_B.weight"]).norm())
    near = float((averaged.last.tensors["head.layer.lora_B.weight"]).norm())
    assert 0 < near < far

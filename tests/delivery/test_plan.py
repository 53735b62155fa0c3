"""Plans: what is chosen, what is left as it is, and what is said where nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.test_rehearsal import classify, dreambooth
from visionpeft.compute.planning.hardware import gpu_named
from visionpeft.compute.planning.rates import reckoned
from visionpeft.config import load_config
from visionpeft.delivery.fitting import fitted
from visionpeft.delivery.machine import machine_for
from visionpeft.delivery.plan import Machine, Plan, changed, make_plan
from visionpeft.errors import ConfigError

MIB = 1024**2
OUTSIDE = 700 * MIB
"""The context, and what is left free of little."""


def plan_within(config, mib: float | None) -> Plan:
    gpu = gpu_named("RTX 3060")
    return make_plan(config, Machine(reckoned(gpu), None if mib is None else int(mib * MIB), gpu))


def test_with_room_the_settings_stay(tmp_path):
    found = plan_within(classify(tmp_path, batch_size=8), 12_000)
    assert found.chosen is not None
    assert found.settings == []
    assert found.chosen.prediction.seconds > 0
    assert found.verdict.startswith("the settings as they are: ")
    assert {"preparing", "training", "evaluation"} <= set(found.chosen.prediction.phases)


def test_with_less_room_the_fastest_that_fits_is_chosen(tmp_path):
    config = classify(tmp_path, batch_size=64, evaluate_every=0)
    whole = plan_within(config, None).chosen
    found = plan_within(config, whole.needs / MIB - 60)
    assert found.chosen is not None
    assert found.chosen.fits
    assert found.chosen.needs <= whole.needs - 60 * MIB
    fitting = [one for one in (found.chosen, *found.others) if one.fits]
    assert found.chosen.prediction.seconds == min(one.prediction.seconds for one in fitting)
    train = changed(config.train, found.chosen.changes)
    assert train.batch_size * train.gradient_accumulation == 64
    assert all(line.startswith("train.") for line in found.settings)


def test_what_is_fixed_stays(tmp_path):
    fixed = {"batch_size": 32, "gradient_accumulation": 1, "gradient_checkpointing": False, "optimizer": "adamw",
             "memory": {"base": "auto", "stream": 0.0}, "evaluate_every": 0}  # fmt: skip
    found = plan_within(classify(tmp_path, **fixed), 600)
    assert found.chosen is None
    assert found.smallest.changes == {}
    assert found.verdict.startswith("nothing fits 600.0 MiB: the settings as they are needs least, ")


def test_where_nothing_fits_the_smallest_is_told(tmp_path):
    config = classify(tmp_path, batch_size=2, evaluate_every=0)
    found = plan_within(config, 550)
    assert found.chosen is None
    assert found.smallest.needs == min(one.needs for one in (found.smallest, *found.others))
    assert "nothing fits 550.0 MiB" in found.verdict
    assert found.smallest.needs > 550 * MIB


def test_a_picture_task_is_planned_with_its_phases(tmp_path):
    found = plan_within(dreambooth(tmp_path, ema=0.9), 12_000)
    assert found.chosen is not None
    prediction = found.chosen.prediction
    assert {"preparing", "training"} <= set(prediction.phases)
    assert prediction.peak.reserved >= prediction.phases["training"].reserved
    assert prediction.context >= 512 * MIB


def test_streamed_weights_are_in_main_memory_and_cost_time(tmp_path):
    gpu = gpu_named("RTX 3060")
    plain, away = (
        make_plan(classify(tmp_path / str(share), memory={"stream": share}), Machine(reckoned(gpu), None, gpu)).chosen
        for share in (0.0, 1.0)
    )
    assert away.prediction.main_memory > 0
    assert away.prediction.weights < plain.prediction.weights


def test_the_optimizer_of_a_run_that_goes_on_is_left_alone(tmp_path):
    gpu = gpu_named("RTX 3060")
    machine = Machine(reckoned(gpu), 550 * MIB, gpu)
    found = make_plan(classify(tmp_path, batch_size=2, evaluate_every=0), machine, optimizer=False)
    assert all("optimizer" not in one.changes for one in (found.smallest, *found.others))


def test_which_machine_is_meant(monkeypatch):
    monkeypatch.setattr("visionpeft.delivery.machine.best_device", lambda: "cpu")
    assert machine_for("8GB", None).gpu.name.endswith("4060")
    assert machine_for("8GB", "T4").precision("auto").dtype == torch.float16
    assert machine_for(None, "H200").memory == 140 * 1024**3
    with pytest.raises(ConfigError, match="say for which to plan"):
        machine_for(None, None)
    with pytest.raises(ConfigError, match="is not in this machine"):
        machine_for("8GB", "T4", measure=True)


def test_a_cap_without_a_gpu_is_told_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("visionpeft.compute.devices.best_device", lambda: "cpu")
    said: list[str] = []

    class Lines:
        def say(self, line: str) -> None:
            said.append(line)

    config = classify(tmp_path, vram="8GB")
    assert fitted(config, Lines()) is config
    assert said == ["train.vram=8GB: no GPU is here, so nothing is capped and the settings stay as they are."]
    assert fitted(classify(tmp_path / "auto", vram="auto"), Lines()).train.vram == "auto"
    assert len(said) == 1


def test_a_bad_amount_in_the_settings_names_its_place():
    file = Path(__file__).parents[2] / "configs" / "dreambooth_demo.yaml"
    with pytest.raises(ConfigError, match=r"train\.vram.*'lots' is no amount of memory"):
        load_config(file, ["train.vram=lots"])

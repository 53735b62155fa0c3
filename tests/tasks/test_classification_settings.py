"""Settings of classification and detection: what they fill in, what they refuse, what runs they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from visionpeft.cli import run
from visionpeft.config import TASKS, ClassifyRun, DetectRun, config_from
from visionpeft.errors import ConfigError

SOURCE = {"format": "folder", "path": "cells"}


def classify(data: dict[str, Any] | None = None, **more: Any) -> ClassifyRun:
    config = config_from({"task": "classify", "data": {"source": SOURCE, **(data or {})}, "output": "runs/x", **more})
    assert isinstance(config, ClassifyRun)
    return config


def test_the_embedded_bases_and_an_evaluation_are_the_default():
    assert classify().base == "visionpeft/emoji-vit"
    assert classify().train.evaluate_every == 50
    assert classify(train={"steps": 10}).train.evaluate_every == 50
    assert classify(train={"evaluate_every": 7}).train.evaluate_every == 7
    source = {"format": "voc", "folder": "cells"}
    found = config_from({"task": "detect", "data": {"source": source}, "output": "runs/x"})
    assert isinstance(found, DetectRun)
    assert (found.base, found.train.evaluate_every) == ("visionpeft/emoji-detr", 200)


def test_folds_are_runs_in_folders_of_their_own():
    parts = classify({"folds": 3}).parts()
    assert [part.output for part in parts] == [Path("runs/x") / f"fold_{number}" for number in (1, 2, 3)]
    assert [part.data.fold for part in parts if isinstance(part, ClassifyRun)] == [1, 2, 3]
    assert all(part.parts() == () for part in parts)
    assert classify({"folds": 3, "fold": 2}).parts() == ()
    assert classify().parts() == ()


@pytest.mark.parametrize(
    ("data", "more", "line"),
    [
        ({"fold": 2}, {}, "fold 2 is none of no folds"),
        ({"folds": 3, "fold": 4}, {}, "fold 4 is none of 3 folds"),
        ({"folds": 3}, {"resume": "runs/x/checkpoints/step_000002"}, "a checkpoint belongs to one of the folds"),
        ({"mix": {"mixup": 0.2}}, {"train": {"batch_size": 3}}, "train.batch_size 3 is to be even"),
        ({}, {"metric": "acuracy"}, "metric should be"),
        ({}, {"loss": {"kind": "focl"}}, "Did you mean 'focal'"),
        ({"imagesize": 64}, {}, "Did you mean 'image_size'"),
    ],
)
def test_what_cannot_be_is_one_line(data: dict[str, Any], more: dict[str, Any], line: str):
    with pytest.raises(ConfigError) as caught:
        classify(data, **more)
    assert line in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_schema(task: str, capsys: pytest.CaptureFixture[str]):
    assert run(["schema", task]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["task"]["const"] == task

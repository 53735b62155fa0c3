"""The commands on classifiers and detectors hand on every option, and say what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from visionpeft.cli import run
from visionpeft.delivery import RunResult
from visionpeft.delivery.evaluation import Evaluation
from visionpeft.inference.predict import Job, Predicted


class Sure:
    """An answer."""

    def as_json(self) -> dict[str, Any]:
        return {"labels": ["owl"]}

    def as_words(self) -> list[str]:
        return ["owl 0.9", "robot 0.1"]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Evaluation]:
    jobs: list[Evaluation] = []

    def run_evaluation(job: Evaluation, **_: Any) -> RunResult:
        jobs.append(job)
        return RunResult(None, Path("a"), {}, Path("page/report.html"), {"auc": 0.98765, "f1": 0.5})

    monkeypatch.setattr("visionpeft.delivery.evaluation.run_evaluation", run_evaluation)
    return jobs


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    jobs: list[Job] = []

    def run_predict(job: Job, **_: Any) -> Predicted:
        jobs.append(job)
        return Predicted({"one.png": Sure()}, ())

    monkeypatch.setattr("visionpeft.inference.predict.run_predict", run_predict)
    return jobs


def test_evaluate_hands_on_every_option(evaluated: list[Evaluation]):
    options = ["--data", "d.csv", "--split", "all", "--output", "o", "--tta", "--base", "b", "--json"]
    assert run(["evaluate", "runs/x", "data.kind=binary", "report.seed=1", *options]) == 0
    assert run(["evaluate", "runs/x"]) == 0
    whole = Evaluation(
        Path("runs/x"), ("data.kind=binary", "report.seed=1"), Path("d.csv"), "all", Path("o"), True, "b"
    )
    assert evaluated == [whole, Evaluation(Path("runs/x"))]


def test_evaluate_says_page_and_figures(evaluated: list[Evaluation], capsys: pytest.CaptureFixture[str]):
    assert run(["evaluate", "runs/x"]) == 0
    words = capsys.readouterr().out.split()
    assert words == ["report", "page/report.html", "auc", "0.988", "f1", "0.500"]
    assert run(["evaluate", "runs/x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"auc": 0.98765, "f1": 0.5}


def test_predict_hands_on_every_option(predicted: list[Job]):
    options = ["--output", "o", "--format", "csv", "--batch", "3", "--threshold", "0.2", "--tile", "64", "--tta",
               "--base", "b"]  # fmt: skip
    assert run(["predict", "a.safetensors", "one.png", "folder", *options]) == 0
    assert run(["predict", "a.safetensors", "one.png"]) == 0
    paths = (Path("one.png"), Path("folder"))
    whole = Job(Path("a.safetensors"), paths, Path("o"), "csv", 3, 0.2, 64, True, "b")
    assert predicted == [whole, Job(Path("a.safetensors"), paths[:1])]


def test_predict_says_answers_or_where_they_are(predicted: list[Job], capsys: pytest.CaptureFixture[str]):
    assert run(["predict", "a.safetensors", "one.png"]) == 0
    assert capsys.readouterr().out.split() == ["one.png", "owl", "0.9,", "robot", "0.1"]
    assert run(["predict", "a.safetensors", "one.png", "--output", "o.json"]) == 0
    assert capsys.readouterr().out.split() == ["written", "o.json", "pictures", "1"]
    assert run(["predict", "a.safetensors", "one.png", "--output", "o.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"one.png": {"labels": ["owl"]}}
    assert predicted[0].format == "json"

"""A classification from settings to report, its folds, and what is done with the adapter afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from tests.vision_place import classify_settings, write_base, write_pictures
from visionpeft.adapters.archive import Adapter
from visionpeft.cli import run
from visionpeft.config import config_from
from visionpeft.delivery import RunResult
from visionpeft.delivery.folds import mean_and_spread
from visionpeft.delivery.parts import opened
from visionpeft.errors import AdapterError, DataError
from visionpeft.inference.detector import Detector
from visionpeft.inference.predict import open_model
from visionpeft.progress import SILENT
from visionpeft.run import train

TRAIN = {"steps": 12, "batch_size": 8, "learning_rate": 1e-2, "evaluate_every": 4, "checkpoint_every": 6}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivered")
    write_base(folder / "base", "vit")
    write_pictures(folder / "pictures", {"red": 16, "green": 12, "blue": 8})
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> RunResult:
    report = {"resamples": 20, "subgroups": ["site"]}
    result = train(config_from(classify_settings(place, train=TRAIN, report=report)))
    assert result is not None
    return result


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_run_leaves_adapter_figures_and_a_page(place: Path, done: RunResult):
    assert {path.name for path in (place / "out").iterdir()} == {
        "adapter.safetensors", "checkpoints", "config.yaml", "log.jsonl", "metrics.json", "report.html",
    }  # fmt: skip
    metrics = json.loads((place / "out" / "metrics.json").read_text())
    assert metrics["after"] == done.metrics
    assert metrics["method"] == "lora"
    assert metrics["trainable_parameters"] < metrics["total_parameters"]
    assert sum(metrics["pictures"].values()) == 36
    assert metrics["leaks_checked"] is True
    assert metrics["best_step"] in (4, 8, 12)
    page = (place / "out" / "report.html").read_text()
    assert "site" in page
    assert "<script" not in page


def test_the_adapter_holds_what_validation_chose(done: RunResult):
    assert done.adapter is not None
    heads = Adapter.load(done.adapter).metadata.heads
    assert heads["task"] == "classify"
    assert set(heads["thresholds"]) == {"red", "green", "blue"}
    assert heads["temperature"] > 0


def test_evaluating_the_run_again_gives_its_figures(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, out, _ = told(capsys, "evaluate", place / "out", "--output", tmp_path / "again", "--json")
    assert status == 0
    assert json.loads(out)["metrics"] == pytest.approx(done.metrics, abs=1e-6)
    assert (tmp_path / "again" / "report.html").is_file()


def test_other_pictures_are_measured_at_the_adapters_thresholds(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = write_pictures(tmp_path / "other", {"red": 3, "green": 3, "blue": 3}, seed=5)
    status, out, err = told(
        capsys, "evaluate", done.adapter, "--data", table, "--split", "all", "--output", tmp_path / "e", "--json"
    )
    assert status == 0, err
    model = open_model(done.adapter)
    named = sorted((tmp_path / "other").glob("*.png"))
    said = [answer.labels[0] for answer in model.say([Image.open(path).convert("RGB") for path in named], options())]
    truth = [path.stem.rstrip("0123456789") for path in named]
    assert json.loads(out)["metrics"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, said))
    figures = json.loads((tmp_path / "e" / "metrics.json").read_text())["figures"]
    points = {part["label"]: part["operating_point"]["threshold"] for part in figures["classes"]}
    heads = Adapter.load(done.adapter).metadata.heads
    assert points == heads["thresholds"]
    assert figures["temperature"]["value"] == heads["temperature"]
    assert figures["calibrated"]["log_loss"] != figures["calibration"]["log_loss"]
    page = (tmp_path / "e" / "report.html").read_text()
    assert "The validation pictures of the adapter&#39;s training decided from which probability on" in page
    assert page.count("validation of its training") == 3
    assert "nothing: fixed" not in page
    assert "is the adapter's, fitted on the validation pictures of its training" in page
    fixed = ("report.operating_point.rule=fixed", "report.operating_point.threshold=0.25")
    more = ("--data", table, "--split", "all", "--output", tmp_path / "fixed", *fixed)
    assert told(capsys, "evaluate", done.adapter, *more)[0] == 0
    figures = json.loads((tmp_path / "fixed" / "metrics.json").read_text())["figures"]
    assert {part["operating_point"]["threshold"] for part in figures["classes"]} == {0.25}


def options():
    from visionpeft.inference.model import Options

    return Options()


def test_folds_are_runs_of_their_own_with_a_mean(place: Path, tmp_path: Path):
    settings = classify_settings(place, train=TRAIN | {"steps": 2, "evaluate_every": 2}, output=str(tmp_path / "cv"))
    settings["data"] = settings["data"] | {"folds": 3}
    result = train(config_from(settings))
    assert result is not None
    assert result.adapter is None
    folds = [json.loads((tmp_path / "cv" / f"fold_{n}" / "metrics.json").read_text())["after"] for n in (1, 2, 3)]
    told = json.loads((tmp_path / "cv" / "metrics.json").read_text())
    assert told["folds"] == folds
    assert result.metrics["accuracy"] == pytest.approx(np.mean([fold["accuracy"] for fold in folds]))
    assert told["spread"]["accuracy"] == pytest.approx(np.std([fold["accuracy"] for fold in folds], ddof=1))
    assert 'href="fold_3/report.html"' in (tmp_path / "cv" / "report.html").read_text()
    tests = [
        json.loads((tmp_path / "cv" / f"fold_{n}" / "metrics.json").read_text())["pictures"]["test"] for n in (1, 2, 3)
    ]
    assert sum(tests) == 36  # each picture is tested once


def test_a_figure_that_a_fold_lacks_has_no_mean():
    means, spreads = mean_and_spread([{"auc": 0.5, "f1": 1.0}, {"f1": 0.0}])
    assert means == {"f1": 0.5}
    assert spreads == {"f1": pytest.approx(0.5**0.5)}


def test_predictions_as_json_csv_and_pictures(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one, folder = place / "pictures" / "red0.png", place / "pictures"
    status, out, _ = told(capsys, "predict", done.adapter, one, folder, "--json", "--batch", 5)
    assert status == 0
    said = json.loads(out)
    assert len(said) == 36
    assert sum(said[str(one)]["probabilities"].values()) == pytest.approx(1)
    assert told(capsys, "predict", done.adapter, folder, "--format", "csv", "--output", tmp_path / "a.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {row["file"]: row["label"] for row in rows} == {name: answer["labels"][0] for name, answer in said.items()}
    assert float(rows[0]["p(red)"]) == pytest.approx(said[rows[0]["file"]]["probabilities"]["red"])
    assert told(capsys, "predict", done.adapter, one, "--format", "pictures", "--output", tmp_path / "p")[0] == 0
    assert Image.open(tmp_path / "p" / "red0.png.png").height > 180  # enlarged, with words below


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--tile", "64"), "tiles are for detectors, and this adapter is a classifier: leave --tile away."),
        (("--threshold", "0.3"), "the labels are multiclass: the likeliest is the answer, without a threshold;"),
        (("--format", "jsn"), "--format 'jsn': one of json, csv, pictures. Did you mean 'json'?"),
        (("--format", "pictures"), "annotated pictures need a folder: name it with --output."),
        (("--base", "nowhere/x"), "'nowhere/x' "),
        # before a base is looked for, and so before anything is predicted
        (("--base", "nowhere/x", "--output", "no/folder/a.csv"), "there is no folder no/folder; make it first."),
        (("--base", "nowhere/x", "--tile", "64"), "tiles are for detectors"),
        (("--base", "nowhere/x", "--threshold", "0.3"), "the labels are multiclass"),
        (("--base", "nowhere/x", "gone/a.png"), "gone/a.png"),
        (("--base", "nowhere/x", "--format", "pictures", "--output", "pyproject.toml/p"), "pyproject.toml is a file"),
    ],
)
def test_what_does_not_fit_is_one_line(
    place: Path, done: RunResult, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], line: str
):
    status, out, err = told(capsys, "predict", done.adapter, place / "pictures" / "red0.png", *more)
    assert (status, out) == (2, "")
    assert line in err


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--data", "gone.csv"), "gone.csv does not exist."),
        (("--data", "pyproject.toml"), "pyproject.toml: expected a folder of classes"),
        (
            ("--data", "table.csv", "report.subgroups=[sit]"),
            "there is 'label', 'patient', 'site'. Did you mean 'site'?",
        ),
        (("--data", "table.csv", "report.resample=3"), "Did you mean 'resamples'?"),
        (("--data", "table.csv", "--split", "validation"), "no pictures are in the split 'validation'"),
        (("--data", "table.csv", "--output", "pyproject.toml/p"), "pyproject.toml is a file"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_base_is_loaded(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], line: str
):
    output = () if "--output" in more else ("--output", tmp_path / "e")
    told_of = [str(place / "pictures" / one) if one == "table.csv" else one for one in more]
    status, out, err = told(capsys, "evaluate", done.adapter, *told_of, *output, "--base", "nowhere/x")
    assert (status, out) == (2, "")
    assert line in err
    assert not (tmp_path / "e").exists()


def test_subgroups_by_an_unknown_column_are_refused_before_training(place: Path, tmp_path: Path):
    settings = classify_settings(place, report={"subgroups": ["sit"]}, base="nowhere/x", output=str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"report\.subgroups: the pictures have no column 'sit'"):
        train(config_from(settings))


@pytest.mark.parametrize(
    ("output", "more", "line"),
    [
        ("there.onnx", (), "there.onnx exists: choose another name, or allow overwriting with --overwrite"),
        ("m.bin", (), "ONNX files end in .onnx; name it m.onnx"),
        ("no/m.onnx", (), "there is no folder"),
        ("there.onnx", ("--overwrite",), "'nowhere/x' "),  # allowed: the base comes next
    ],
)
def test_a_file_that_cannot_be_exported_to_is_said_before_a_base_is_loaded(
    done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, more: tuple[str, ...], line: str
):
    pytest.importorskip("onnxscript")
    (tmp_path / "there.onnx").write_bytes(b"mine")
    target = ("--format", "onnx", "--output", tmp_path / output, "--base", "nowhere/x")
    status, out, err = told(capsys, "export", done.adapter, *target, *more)
    assert (status, out) == (2, "")
    assert line in err
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_an_adapter_without_a_head_is_no_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from visionpeft.adapters.spec import LoraSpec

    plain = Adapter({"unet": LoraSpec()}, {}).save(tmp_path / "a.safetensors")
    status, _, err = told(capsys, "predict", plain, tmp_path)
    assert status == 2
    assert "an adapter without a head: it is no classifier and no detector" in err


def test_the_adapter_alone_needs_pictures(done: RunResult, capsys: pytest.CaptureFixture[str]):
    status, _, err = told(capsys, "evaluate", done.adapter)
    assert status == 2
    assert "is an adapter alone: name its data with --data" in err


def test_the_merged_model_is_exported(done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    status, out, err = told(capsys, "export", done.adapter, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert status == 0, err
    assert "ONNX Runtime and PyTorch agree on 6 random pictures in logits" in out
    again = told(
        capsys, "export", done.adapter, "--format", "onnx", "--output", tmp_path / "m.onnx", "--overwrite", "--json"
    )
    assert again[0] == 0, again[2]
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == ["blue", "green", "red"]
    model = open_model(done.adapter)
    images = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))]
    found = session.run(["logits"], {"pixels": model.about.preprocessing.pixels(images).numpy()})[0]
    np.testing.assert_allclose(found, model.logits_of(images), atol=1e-4)


def test_figures_of_other_than_test_pictures_are_called_too_good(place: Path, done: RunResult, tmp_path: Path):
    for split, words in (("validation", "the thresholds were chosen on them"), ("train", "that it learned from")):
        assert run(["evaluate", str(place / "out"), "--split", split, "--output", str(tmp_path / split)]) == 0
        page = (tmp_path / split / "report.html").read_text()
        assert words in page
        assert "which nothing was chosen on" not in page
    assert "which nothing was chosen on" in (place / "out" / "report.html").read_text()


def test_without_test_pictures_validation_is_reported_with_a_warning(place: Path, tmp_path: Path):
    settings = classify_settings(place, output=str(tmp_path / "out"))
    settings["data"] = settings["data"] | {"split": {"fractions": [0.7, 0.3, 0]}}
    result = train(config_from(settings))
    assert result is not None
    assert "These figures are too good" in result.report.read_text()


@pytest.mark.parametrize(
    ("explain", "heats", "flows"), [("grad-cam", True, False), ("rollout", False, True), ("both", True, True),
                                    ("none", False, False)],
)  # fmt: skip
def test_errors_are_explained_as_asked(
    place: Path, done: RunResult, tmp_path: Path, explain: str, heats: bool, flows: bool
):
    table = write_pictures(tmp_path / "other", {"red": 3, "green": 3, "blue": 3}, seed=5)
    rows = table.read_text().replace(",red,", ",x,").replace(",blue,", ",red,").replace(",x,", ",blue,")
    table.write_text(rows)  # wrong labels: errors to show
    options = ["--data", str(table), "--output", str(tmp_path / "e"), f"report.explain={explain}"]
    assert run(["evaluate", str(done.adapter), *options]) == 0
    page = (tmp_path / "e" / "report.html").read_text()
    assert 'class="pair"' in page
    assert ('alt="Heat map for' in page) == heats
    assert ('alt="Attention rollout"' in page) == flows


def test_an_adapter_of_another_task_is_refused(done: RunResult):
    assert done.adapter is not None
    with pytest.raises(AdapterError, match=r"adapter\.safetensors is a classifier, not a detector"):
        opened(Detector, done.adapter, SILENT)

"""A detection from settings to report, and what is done with the adapter afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vision_place import detect_settings, write_base, write_scenes
from visionpeft.adapters.archive import Adapter
from visionpeft.cli import run
from visionpeft.config import config_from
from visionpeft.delivery import RunResult
from visionpeft.inference.detector import Detector
from visionpeft.inference.predict import open_model
from visionpeft.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delivered")
    write_base(folder / "base", "detr")
    write_scenes(folder / "pictures", 16)
    return folder


@pytest.fixture(scope="module")
def done(place: Path) -> RunResult:
    result = train(config_from(detect_settings(place)))
    assert result is not None
    return result


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_run_leaves_adapter_figures_and_a_page(place: Path, done: RunResult):
    metrics = json.loads((place / "out" / "metrics.json").read_text())
    assert metrics["figures"]["coco"]["overall"]["ap"] == done.metrics["ap"]
    assert metrics["figures"]["threshold"] == done.metrics["threshold"]
    assert metrics["pictures"] == {"train": 9, "validation": 3, "test": 4}
    assert "<script" not in (place / "out" / "report.html").read_text()
    assert done.adapter is not None
    heads = Adapter.load(done.adapter).metadata.heads
    assert heads["task"] == "detect"
    assert heads["threshold"] == done.metrics["threshold"]
    assert heads["labels"] == ["red", "green", "blue"]


def test_evaluating_the_run_again_gives_its_figures(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, out, err = told(capsys, "evaluate", place / "out", "--output", tmp_path / "again", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"] == pytest.approx(done.metrics, abs=1e-6)


def test_other_pictures_are_measured_at_the_adapters_threshold(
    done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = write_scenes(tmp_path / "other", 3) / "boxes.json"
    status, out, err = told(
        capsys, "evaluate", done.adapter, "--data", other, "--split", "all", "--output", tmp_path / "e", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["metrics"]["threshold"] == pytest.approx(done.metrics["threshold"])
    assert "the adapter&#39;s, as its training left it." in (tmp_path / "e" / "report.html").read_text()
    more = ("--data", other, "--split", "all", "--output", tmp_path / "given", "report.threshold=0.25", "--json")
    assert json.loads(told(capsys, "evaluate", done.adapter, *more)[1])["metrics"]["threshold"] == 0.25


def test_mirrored_pictures_have_a_threshold_of_their_own(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, out, err = told(capsys, "evaluate", place / "out", "--tta", "--output", tmp_path / "e", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"]["threshold"] != done.metrics["threshold"]
    other = write_scenes(tmp_path / "other", 3) / "boxes.json"
    assert told(capsys, "evaluate", done.adapter, "--data", other, "--tta", "--output", tmp_path / "o")[0] == 0
    assert "on pictures that were not seen mirrored as well" in (tmp_path / "o" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ((), "the adapter's, as its training left it\n"),
        (("--threshold", "0.25"), "threshold 0.25, as given by --threshold\n"),
        (("--tta",), "seen once and whole; --tta may shift scores: --threshold sets another, and 'visionpeft evaluate"),
        (("--tile", "32"), "seen once and whole; --tile may shift scores: --threshold sets another."),
        (("--tta", "--tile", "32"), "--tta and --tile may shift scores"),
    ],
)
def test_predictions_say_their_threshold(
    place: Path, done: RunResult, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], line: str
):
    _, _, err = told(capsys, "predict", done.adapter, place / "pictures" / "0.png", *more)
    assert line.strip() in " ".join(err.split())


def test_predictions_as_json_csv_and_pictures(
    place: Path, done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, all_of_it = place / "pictures", ("--threshold", "0")
    status, out, err = told(capsys, "predict", done.adapter, folder, "--json", *all_of_it)
    assert status == 0, err
    said = json.loads(out)
    assert len(said) == 16
    first = said[str(folder / "0.png")]["detections"]
    assert len(first) == 6  # one a query: DETR's classes exclude each other
    assert [one["score"] for one in first] == sorted((one["score"] for one in first), reverse=True)
    assert all(0 <= side <= 64 for one in first for side in one["box"])
    assert (
        told(capsys, "predict", done.adapter, folder, "--format", "csv", "--output", tmp_path / "a.csv", *all_of_it)[0]
        == 0
    )
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 16 * 6
    assert float(rows[0]["x_min"]) == first[0]["box"][0]
    one = folder / "0.png"
    assert (
        told(capsys, "predict", done.adapter, one, "--format", "pictures", "--output", tmp_path / "p", *all_of_it)[0]
        == 0
    )
    assert Image.open(tmp_path / "p" / "0.png.png").size == (192, 192)


def test_tiles_and_views(place: Path, done: RunResult, capsys: pytest.CaptureFixture[str]):
    picture = place / "pictures" / "0.png"
    plain, tiled, viewed = (
        json.loads(told(capsys, "predict", done.adapter, picture, "--json", "--threshold", "0", *more)[1])
        for more in ((), ("--tile", "32"), ("--tta",))
    )
    assert plain != tiled
    assert plain != viewed


def test_boxes_come_back_to_the_pictures_own_pixels(done: RunResult):
    model = open_model(done.adapter)
    assert isinstance(model, Detector)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    small, large = model.detect([picture])[0], model.detect([picture.resize((128, 64), Image.Resampling.NEAREST)])[0]
    assert large.boxes[:, 2].max() > 64
    assert small.boxes.max() <= 64


def test_boxes_that_were_left_out_are_in_page_and_figures(place: Path, done: RunResult, tmp_path: Path):
    folder = write_scenes(tmp_path / "other", 3)
    told_of = json.loads((folder / "boxes.json").read_text())
    told_of["annotations"][1]["bbox"][2] = 0
    (folder / "boxes.json").write_text(json.dumps(told_of))
    arguments = ["evaluate", str(done.adapter), "on_bad=skip", "--data", str(folder / "boxes.json")]
    assert run([*arguments, "--output", str(tmp_path / "e")]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    (fault,) = metrics["faults"]
    assert "has no area" in fault
    assert "boxes.json" in fault
    page = (tmp_path / "e" / "report.html").read_text()
    assert page.count("has no area") == 1  # in its own place, and not among the notes once more
    assert "1 left out" in page


def test_the_merged_model_is_exported(done: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    status, out, err = told(capsys, "export", done.adapter, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert status == 0, err
    assert "agree on 6 random pictures in scores and boxes" in out
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    scores, boxes = session.run(None, {"pixels": np.zeros((1, 3, 64, 64), np.float32)})
    assert scores.shape == (1, 6, 3)
    assert boxes.shape == (1, 6, 4)

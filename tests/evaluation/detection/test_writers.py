from __future__ import annotations

import contextlib
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from visionpeft.errors import OutputError
from visionpeft.evaluation.detection.detections import Detections
from visionpeft.evaluation.detection.writers import COLUMNS, WRITERS, picture_names, write_detections, write_pictures

LABELS = ("ant", 'bee, "queen"')
FOUND = (
    Detections("x/a.jpg", [[1, 2, 11, 22], [0.126, 0, 5, 5]], [0.25, 0.9], [0, 1]),
    Detections("b.jpg", [], [], []),
)
SIZES = ((40, 30), (20, 10))


def written(folder, kind):
    return write_detections(folder / f"found.{kind}", kind, FOUND, SIZES, LABELS).read_text()


def test_plain_json_holds_every_picture(tmp_path):
    rows = json.loads(written(tmp_path, "json"))
    assert [(r["file"], r["width"], r["height"], len(r["detections"])) for r in rows] == [
        ("x/a.jpg", 40, 30, 2), ("b.jpg", 20, 10, 0)]  # fmt: skip
    assert rows[0]["detections"] == [
        {"label": LABELS[1], "score": 0.9, "box": [0.13, 0, 5, 5]},
        {"label": "ant", "score": 0.25, "box": [1, 2, 11, 22]},
    ]


def test_coco_is_read_by_pycocotools(tmp_path):
    tables = json.loads(written(tmp_path, "coco"))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "found.coco"))
        results = truth.loadRes(tables["annotations"])
    assert [truth.imgs[i]["file_name"] for i in (1, 2)] == ["x/a.jpg", "b.jpg"]
    rows = results.loadAnns(results.getAnnIds(imgIds=[1], catIds=truth.getCatIds(catNms=["ant"])))
    assert [(row["bbox"], row["score"]) for row in rows] == [([1, 2, 10, 20], 0.25)]


def test_csv_has_a_line_a_detection(tmp_path):
    rows = list(csv.reader(io.StringIO(written(tmp_path, "csv"))))
    assert tuple(rows[0]) == COLUMNS
    assert rows[1:] == [["x/a.jpg", LABELS[1], "0.9", "0.13", "0.0", "5.0", "5.0"],
                        ["x/a.jpg", "ant", "0.25", "1.0", "2.0", "11.0", "22.0"]]  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_appears_whole_or_not_at_all(tmp_path, kind):
    with pytest.raises(OutputError, match="make it first"):
        write_detections(tmp_path / "none" / "f", kind, FOUND, SIZES, LABELS)
    written(tmp_path, kind)
    assert [path.name for path in tmp_path.iterdir()] == [f"found.{kind}"]
    assert list(WRITERS) == ["coco", "json", "csv"]


def test_pictures_are_written_with_their_boxes(tmp_path):
    pictures = [Image.new("RGB", size, (100, 100, 100)) for size in SIZES]
    paths = write_pictures(tmp_path / "out", iter(pictures), FOUND, LABELS)
    assert [path.name for path in paths] == ["x__a.png", "b.png"]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 3
    assert len(np.unique(second.reshape(-1, 3), axis=0)) == 1


def test_names_of_pictures_differ_and_stay_in_the_folder():
    names = picture_names(["a.jpg", "a.png", "../../up.jpg", "/top.jpg", "c\\d.jpg", "e/f.jpg"])
    assert names == ["a.jpg.png", "a.png.png", "up.png", "top.png", "c__d.png", "e__f.png"]

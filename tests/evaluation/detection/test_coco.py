from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation.detection.cases import LABELS, random_evaluation
from tests.evaluation.detection.reference import mean_figure
from visionpeft.data.detection.scenes import Scene
from visionpeft.evaluation.detection.coco import SIZES, coco_figures
from visionpeft.evaluation.detection.curves import precision_at_recalls
from visionpeft.evaluation.detection.detections import Detections, evaluation_of
from visionpeft.evaluation.detection.matching import all_matches

STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
         "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip


def stats(evaluation, folder, classes=None):
    """The twelve figures as pycocotools gives them when it reads files, as its users do."""
    truth = {"images": [], "categories": [], "annotations": []}
    results = []
    for image, (scene, found) in enumerate(zip(evaluation.scenes, evaluation.detections, strict=True), 1):
        truth["images"].append({"id": image, "width": scene.width, "height": scene.height})
        for box, label, crowd in zip(scene.boxes.tolist(), scene.labels.tolist(), scene.crowd.tolist(), strict=True):
            corner = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": image, "category_id": label, "bbox": corner,
                "area": corner[2] * corner[3], "iscrowd": int(crowd),
            })  # fmt: skip
        for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
            corner = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": image, "category_id": label, "bbox": corner, "score": score})
    truth["categories"] = [{"id": k, "name": name} for k, name in enumerate(evaluation.labels)]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        run = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        if classes is not None:
            run.params.catIds = classes
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@pytest.mark.parametrize("seed", range(50))
def test_every_figure_is_that_of_pycocotools_and_of_the_definition(seed, tmp_path):
    evaluation = random_evaluation(seed)
    if not any(len(found) for found in evaluation.detections):
        pytest.skip("pycocotools cannot load results without a detection")
    figures = coco_figures(evaluation)
    for classes, scores in [(None, figures.overall), *(([k], figures.classes[n]) for k, n in enumerate(LABELS))]:
        for key, wanted in zip(STATS, stats(evaluation, tmp_path, classes), strict=True):
            value = getattr(scores, key)
            assert (-1 if value is None else value) == pytest.approx(wanted, abs=1e-6), key
    overall = figures.overall
    assert overall.ap == pytest.approx(mean_figure(evaluation, 0), abs=1e-6)
    assert overall.ap50 == pytest.approx(mean_figure(evaluation, 0, [0.5]), abs=1e-6)
    assert overall.ap75 == pytest.approx(mean_figure(evaluation, 0, [0.75]), abs=1e-6)
    assert overall.ar10 == pytest.approx(mean_figure(evaluation, 1, most=10), abs=1e-6)
    for size in SIZES:
        assert getattr(overall, f"ap_{size}") == pytest.approx(mean_figure(evaluation, 0, size=size), abs=1e-6)
        assert getattr(overall, f"ar_{size}") == pytest.approx(mean_figure(evaluation, 1, size=size), abs=1e-6)
    matches = all_matches(evaluation)
    for label, name in enumerate(LABELS):
        own = precision_at_recalls(matches, label)
        value = None if own is None else own.mean()
        assert value == pytest.approx(figures.classes[name].ap50, abs=1e-6)


def test_objects_are_counted_without_crowds():
    scene = Scene("a", 50, 50, np.array([[0, 0, 9, 9]] * 3), np.array([0, 0, 2]), crowd=np.array([True, False, False]))
    figures = coco_figures(evaluation_of(LABELS, [scene], [Detections("a", [], [], [])]))
    assert {name: scores.objects for name, scores in figures.classes.items()} == {"ant": 1, "bee": 0, "cat": 1}
    assert figures.overall.objects == 2
    assert figures.overall.ap == 0
    assert figures.classes["bee"].ap is None


def test_nothing_is_printed(capsys):
    coco_figures(random_evaluation(1))
    assert capsys.readouterr() == ("", "")

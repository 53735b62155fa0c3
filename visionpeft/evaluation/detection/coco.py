"""COCO's figures (https://cocodataset.org/#detection-eval) by pycocotools itself: in memory, without its printing."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from visionpeft.data.detection.geometry import areas
from visionpeft.evaluation.detection.detections import Evaluation

MOST_DETECTIONS = (1, 10, 100)
"""Per picture and class, those with the highest scores; average precision uses the last."""

SIZES = ("small", "medium", "large")
"""Objects under 32² square pixels, up to 96², and over."""


class CocoScores(BaseModel):
    """Average precision and recall, each 0 to 1; None where there is no object to measure it on.

    Attributes:
        ap: mean over IoU 0.50, 0.55, …, 0.95.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: ap of objects under 32² square pixels.
        ap_medium: from 32² to 96².
        ap_large: over 96².
        ar1: mean recall over the IoUs with one detection a picture and class.
        ar10: with ten.
        ar100: with a hundred.
        ar_small: ar100 of small objects.
        ar_medium: of medium ones.
        ar_large: of large ones.
        objects: how many there are, crowds left out.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    ar1: float | None = None
    ar10: float | None = None
    ar100: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None
    objects: int = 0


class CocoFigures(BaseModel):
    """COCO's figures over all classes, and of each.

    Attributes:
        overall: means over the classes that have objects.
        classes: label -> its own.
    """

    model_config = ConfigDict(frozen=True)

    overall: CocoScores
    classes: dict[str, CocoScores]


def coco_figures(evaluation: Evaluation) -> CocoFigures:
    """Return COCO's figures of ``evaluation``, equal to those of pycocotools."""
    run = accumulated(evaluation)
    precision, recall = run["precision"], run["recall"]  # [IoU, recall, class, size, most], [IoU, class, size, most]
    counts = np.zeros(len(evaluation.labels), np.int64)
    for scene in evaluation.scenes:
        np.add.at(counts, scene.labels[~scene.crowd], 1)
    classes = {
        label: _scores(precision[:, :, k : k + 1], recall[:, k : k + 1], int(counts[k]))
        for k, label in enumerate(evaluation.labels)
    }
    return CocoFigures(overall=_scores(precision, recall, int(counts.sum())), classes=classes)


def accumulated(evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    """Return pycocotools' arrays "precision" [10, 101, K, 4, 3] and "recall" [10, K, 4, 3]; -1 where nothing is.

    The axes are IoU 0.50 to 0.95, recall 0 to 1, classes, sizes (all, small, medium, large), most detections.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = cast(Any, _truth(evaluation)), cast(Any, _found(evaluation))
        truth.createIndex()
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.params.maxDets = list(MOST_DETECTIONS)
        run.evaluate()
        run.accumulate()
    return {"precision": run.eval["precision"], "recall": run.eval["recall"]}


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": i, "width": s.width, "height": s.height} for i, s in enumerate(evaluation.scenes, 1)],
        "categories": [{"id": k, "name": label} for k, label in enumerate(evaluation.labels, 1)],
    }


def _row(number: int, image: int, label: int, box: NDArray[Any], area: float) -> dict[str, Any]:
    left, top, right, bottom = box.astype(np.float64).tolist()
    corner = [left, top, right - left, bottom - top]
    return {"id": number, "image_id": image, "category_id": label + 1, "bbox": corner, "area": area, "iscrowd": 0}


def _truth(evaluation: Evaluation) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for image, scene in enumerate(evaluation.scenes, 1):
        parts = zip(scene.labels.tolist(), scene.boxes, areas(scene.boxes).tolist(), scene.crowd.tolist(), strict=True)
        rows += [_row(0, image, label, box, area) | {"iscrowd": int(crowd)} for label, box, area, crowd in parts]
    return _tables(evaluation) | {"annotations": [row | {"id": number} for number, row in enumerate(rows, 1)]}


def _found(evaluation: Evaluation) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for image, found in enumerate(evaluation.detections, 1):
        parts = zip(found.labels.tolist(), found.boxes, areas(found.boxes).tolist(), found.scores.tolist(), strict=True)
        rows += [_row(0, image, label, box, area) | {"score": score} for label, box, area, score in parts]
    return _tables(evaluation) | {"annotations": [row | {"id": number} for number, row in enumerate(rows, 1)]}


def _scores(precision: NDArray[np.float64], recall: NDArray[np.float64], objects: int) -> CocoScores:
    """The twelve figures of the classes in ``precision`` [10, 101, k, 4, 3] and ``recall`` [10, k, 4, 3]."""
    figures = {
        "ap": _mean(precision[..., 0, -1]),
        "ap50": _mean(precision[0, ..., 0, -1]),
        "ap75": _mean(precision[5, ..., 0, -1]),
    }
    for place, size in enumerate(SIZES, 1):
        figures[f"ap_{size}"] = _mean(precision[..., place, -1])
        figures[f"ar_{size}"] = _mean(recall[..., place, -1])
    for place, most in enumerate(MOST_DETECTIONS):
        figures[f"ar{most}"] = _mean(recall[..., 0, place])
    return CocoScores(objects=objects, **figures)


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what is not -1."""
    kept = values[values > -1]
    mean = float(kept.mean()) if kept.size else math.nan
    return mean if math.isfinite(mean) else None

"""All figures of a detector as one value that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from visionpeft.evaluation.detection.bootstrap import map50_interval
from visionpeft.evaluation.detection.coco import CocoFigures, coco_figures
from visionpeft.evaluation.detection.confusion import confusion
from visionpeft.evaluation.detection.curves import (
    Operating,
    Rule,
    ThresholdCurve,
    chosen_threshold,
    operating_at,
    precision_at_recalls,
    threshold_curve,
)
from visionpeft.evaluation.detection.detections import Evaluation
from visionpeft.evaluation.detection.matching import Matches, all_matches

Interval = tuple[float, float]

DEFAULT_THRESHOLD = 0.5
_POINTS = 200


class DetectionReportConfig(BaseModel):
    """What is measured, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule = Field(default=Rule(), description="How the confidence threshold is chosen on validation.")
    threshold: float | None = Field(
        default=None, ge=0.0, le=1.0, description="A threshold of one's own; null: chosen on validation."
    )
    resamples: int = Field(
        default=500, ge=0, le=100_000, description="Resamples of the pictures for intervals; 0 gives no intervals."
    )
    level: float = Field(default=0.95, gt=0.5, lt=1.0, description="Share of the resamples within an interval.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the resamples.")


@dataclass(frozen=True)
class Held:
    """A threshold that the adapter holds, and where that came from, in words."""

    threshold: float
    words: str


class CurvePoint(BaseModel):
    """Precision, recall and F1 at a threshold."""

    model_config = ConfigDict(frozen=True)

    threshold: float
    precision: float
    recall: float
    f1: float


class DetectionFigures(BaseModel):
    """What was measured on the test pictures, and where the threshold comes from.

    Attributes:
        labels: names of the classes.
        pictures: how many were tested on.
        coco: average precision and recall.
        map50_interval: where mAP50 lies with other pictures, by the bootstrap; None where not measured.
        ap50_intervals: the same by class.
        level: share of the resamples within the intervals.
        threshold: confidence from which a detection counts below.
        threshold_from: how it came about, in words.
        validation: what it gives on the validation pictures; None without them.
        operating: what it gives on the test pictures, all classes together.
        by_class: the same by class.
        confusion: counts, row what is there and column what was detected, the last of both is background.
        precision_at_recall: by class, precision at recall 0, 0.01, …, 1, at IoU 0.5.
        thresholds: precision, recall and F1 over the threshold, of the pictures it was chosen on, else of the test.
        notes: what a reader should know, one line each.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    labels: tuple[str, ...]
    pictures: int
    coco: CocoFigures
    map50_interval: Interval | None
    ap50_intervals: dict[str, Interval | None]
    level: float
    threshold: float
    threshold_from: str
    validation: Operating | None
    operating: Operating
    by_class: dict[str, Operating]
    confusion: tuple[tuple[int, ...], ...]
    precision_at_recall: dict[str, tuple[float, ...]]
    thresholds: tuple[CurvePoint, ...]
    notes: tuple[str, ...] = ()


def detection_figures(
    test: Evaluation,
    validation: Evaluation | None,
    config: DetectionReportConfig | None = None,
    held: Held | None = None,
) -> DetectionFigures:
    """Return all figures of a detector on ``test``.

    Args:
        test: what is there and what was found on pictures that nothing was learned or chosen from.
        validation: the same on other pictures; the threshold is chosen there, never on ``test``.
        config: how the threshold is chosen, and how many resamples there are.
        held: the threshold that is taken where the settings give none and there is no validation.
    """
    config = config or DetectionReportConfig()
    matches = all_matches(test)
    chosen_on = all_matches(validation) if validation is not None else None
    threshold, came_from, notes = _threshold(chosen_on, config, held)
    interval, intervals = None, dict[int, Interval | None]()
    if config.resamples:
        interval, intervals = map50_interval(matches, resamples=config.resamples, seed=config.seed, level=config.level)
    curves = {label: precision_at_recalls(matches, k) for k, label in enumerate(test.labels)}
    return DetectionFigures(
        labels=test.labels,
        pictures=len(test),
        coco=coco_figures(test),
        map50_interval=interval,
        ap50_intervals={label: intervals.get(k) for k, label in enumerate(test.labels)},
        level=config.level,
        threshold=threshold,
        threshold_from=came_from,
        validation=operating_at(chosen_on, threshold) if chosen_on is not None else None,
        operating=operating_at(matches, threshold),
        by_class={label: operating_at(matches, threshold, k) for k, label in enumerate(test.labels)},
        confusion=tuple(tuple(row) for row in confusion(test, threshold).tolist()),
        precision_at_recall={label: tuple(curve.tolist()) for label, curve in curves.items() if curve is not None},
        thresholds=_points(threshold_curve(matches if chosen_on is None else chosen_on)),
        notes=(*notes, *_remarks(test)),
    )


def _threshold(
    chosen_on: Matches | None, config: DetectionReportConfig, held: Held | None
) -> tuple[float, str, list[str]]:
    """(threshold, where it comes from, what is to be said of it)."""
    if config.threshold is not None:
        return config.threshold, "given by the settings", []
    if chosen_on is None and held is not None:
        return held.threshold, held.words, []
    rule = config.rule
    wanted = "the largest F1" if rule.by == "f1" else f"a {rule.by} of at least {rule.least:g}"
    if chosen_on is None:
        note = f"There are no validation pictures: the threshold is {DEFAULT_THRESHOLD}, and was not chosen."
        return DEFAULT_THRESHOLD, "not chosen: there are no validation pictures", [note]
    threshold = chosen_threshold(chosen_on, rule)
    if threshold is None:
        note = f"No threshold gives {wanted} on the validation pictures: it is {DEFAULT_THRESHOLD}, and was not chosen."
        return DEFAULT_THRESHOLD, f"not chosen: none gives {wanted} on the validation pictures", [note]
    return threshold, f"chosen on the {len(chosen_on.objects)} validation pictures for {wanted}", []


def _remarks(test: Evaluation) -> list[str]:
    present = np.unique(np.concatenate([scene.labels[~scene.crowd] for scene in test.scenes]))
    absent = [label for k, label in enumerate(test.labels) if k not in present]
    return [f"No test picture holds {', '.join(absent)}: means leave the class out."] if absent else []


def _points(curve: ThresholdCurve) -> tuple[CurvePoint, ...]:
    """At most 200 points of a curve, evenly spaced by rank, threshold ascending; the ends and the best F1 are in."""
    count = len(curve.thresholds)
    if not count:
        return ()
    places = {*np.linspace(0, count - 1, min(count, _POINTS)).round().astype(int).tolist(), int(curve.f1.argmax())}
    columns = curve.thresholds, curve.precision, curve.recall, curve.f1
    return tuple(
        CurvePoint(threshold=t, precision=p, recall=r, f1=f)
        for t, p, r, f in (tuple(float(column[place]) for column in columns) for place in sorted(places, reverse=True))
    )

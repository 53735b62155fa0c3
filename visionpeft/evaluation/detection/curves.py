"""Precision, recall and F1 over the confidence threshold, and how a threshold is chosen: never on test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from visionpeft.evaluation.detection.matching import Matches

Floats = NDArray[np.float64]
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""Where COCO reads precision."""


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """What each threshold gives, thresholds descending; a detection counts from its own score on.

    Attributes:
        thresholds: float64 [n], the scores that occur.
        hits: int64 [n], detections with at least that score that hit an object.
        alarms: int64 [n], those that hit none.
        objects: how many there are to hit.
    """

    thresholds: Floats
    hits: NDArray[np.int64]
    alarms: NDArray[np.int64]
    objects: int

    @property
    def precision(self) -> Floats:
        """Share of the detections that hit, [n]."""
        return self.hits / np.maximum(self.hits + self.alarms, 1)

    @property
    def recall(self) -> Floats:
        """Share of the objects that are hit, [n]; 0 where there are none."""
        return self.hits / max(self.objects, 1)

    @property
    def f1(self) -> Floats:
        """2 hits / (2 hits + false alarms + misses), [n]."""
        return 2 * self.hits / np.maximum(self.hits + self.alarms + self.objects, 1)


class Rule(BaseModel):
    """How a threshold is chosen.

    Attributes:
        by: "f1" takes the largest F1; "precision" the lowest threshold with at least that precision, which hits
            most; "recall" the highest one with at least that recall, which raises fewest false alarms.
        least: of the precision or recall, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["f1", "precision", "recall"] = Field(default="f1", description="What the threshold is chosen by.")
    least: float | None = Field(
        default=None, ge=0.0, le=1.0, description="At least this precision or recall; nothing with f1."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Rule:
        if (self.by == "f1") != (self.least is None):
            raise ValueError("least goes with precision and recall, and only with them: by f1 takes the largest F1")
        return self


class Operating(BaseModel):
    """What a threshold gives.

    Attributes:
        threshold: confidence from which a detection counts.
        hits: objects found.
        misses: objects not found.
        alarms: detections where nothing is.
        precision: hits / (hits + alarms); None where nothing was detected.
        recall: hits / objects; None where there is no object.
        f1: 2 hits / (2 hits + alarms + misses); None where there is neither.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    threshold: float
    hits: int
    misses: int
    alarms: int
    precision: float | None
    recall: float | None
    f1: float | None


def threshold_curve(matches: Matches, label: int | None = None) -> ThresholdCurve:
    """Return the counts at every threshold, of one class or (None) of all together."""
    chosen = slice(None) if label is None else matches.labels == label
    scores, hit = matches.scores[chosen].astype(np.float64), matches.hit[chosen]
    objects = matches.objects if label is None else matches.objects[:, label]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    hits, alarms = (np.cumsum(flags, dtype=np.int64)[last] for flags in (hit, ~hit))
    return ThresholdCurve(scores[last], hits, alarms, int(objects.sum()))


def precision_at_recalls(matches: Matches, label: int) -> Floats | None:
    """Return COCO's precision [101] at recall 0, 0.01, …, 1: the highest at that recall or beyond; None: no objects."""
    objects = int(matches.objects[:, label].sum())
    if not objects:
        return None
    hit = matches.hit[matches.labels == label]
    hits = np.cumsum(hit)
    precision = hits / np.arange(1, len(hit) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / objects, RECALLS, side="left")
    return np.append(highest, 0.0)[places]


def operating_at(matches: Matches, threshold: float, label: int | None = None) -> Operating:
    """Return what ``threshold`` gives, for one class or all together."""
    chosen = matches.scores >= np.float32(threshold)
    if label is not None:
        chosen &= matches.labels == label
    objects = int((matches.objects if label is None else matches.objects[:, label]).sum())
    hits, alarms = int(matches.hit[chosen].sum()), int((~matches.hit[chosen]).sum())
    return Operating(
        threshold=threshold,
        hits=hits,
        misses=objects - hits,
        alarms=alarms,
        precision=hits / (hits + alarms) if hits + alarms else None,
        recall=hits / objects if objects else None,
        f1=2 * hits / (hits + alarms + objects) if hits + alarms + objects else None,
    )


def chosen_threshold(validation: Matches, rule: Rule) -> float | None:
    """Return the threshold that ``rule`` takes on ``validation``, the same for all classes; None where none will do.

    Of thresholds with the same F1 the highest is taken. The threshold is the score of a detection, so that it counts.
    """
    curve = threshold_curve(validation)
    if not len(curve.thresholds) or not curve.objects:
        return None
    if rule.by == "f1" or rule.least is None:
        return float(curve.thresholds[curve.f1.argmax()])
    values = curve.precision if rule.by == "precision" else curve.recall
    enough = np.flatnonzero(values >= rule.least)
    if not len(enough):
        return None
    return float(curve.thresholds[enough[-1] if rule.by == "precision" else enough[0]])

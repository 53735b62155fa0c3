"""The curves and the headline figures of a detector's report, each with a sentence on how to read it."""

from __future__ import annotations

from dataclasses import dataclass

from visionpeft.evaluation.charts import Line, line_chart
from visionpeft.evaluation.detection.about import DetectionAbout
from visionpeft.evaluation.detection.figures import DetectionFigures, Interval
from visionpeft.evaluation.page import Chart, spell_bytes, spell_seconds

COLOURS = 7
"""Kinds of stroke that the page has for classes: "k0" to "k6"."""


@dataclass(frozen=True)
class DetectionTile:
    """A headline figure, 0 to 1 where it has a ``share``; the interval is drawn on the same scale."""

    label: str
    value: str
    meaning: str
    share: float | None = None
    interval: Interval | None = None


def detection_tiles(figures: DetectionFigures, about: DetectionAbout) -> list[DetectionTile]:
    """Return the headline figures that were measured."""
    scores, at = figures.coco.overall, figures.operating
    right = f"{at.alarms:,} of {at.hits + at.alarms:,} detections were false alarms."
    tiles = [
        _share_tile("mAP50", scores.ap50, "Average precision at IoU 0.5, mean of the classes.", figures.map50_interval),
        _share_tile("mAP", scores.ap, "Mean over IoU 0.50 to 0.95: how exact the boxes are, too. COCO's main figure."),
        _share_tile("Recall", at.recall, f"{at.hits:,} of {at.hits + at.misses:,} objects were found."),
        _share_tile("Precision", at.precision, right),
    ]
    found = [tile for tile in tiles if tile is not None]
    share = about.trainable_share
    if about.trainable_parameters and share is not None:
        size = f" One file of {spell_bytes(about.adapter_bytes)}." if about.adapter_bytes else ""
        text = f"{about.trainable_parameters:,} of {about.total_parameters:,} numbers.{size}"
        found.append(DetectionTile("Trained", f"{100 * share:.3g} %", text))
    if about.seconds:
        memory = f" At most {spell_bytes(about.peak_memory)} of memory." if about.peak_memory else ""
        found.append(
            DetectionTile("Time", spell_seconds(sum(about.seconds.values())), f"From the first file read.{memory}")
        )
    return found


def _share_tile(
    label: str, value: float | None, meaning: str, interval: Interval | None = None
) -> DetectionTile | None:
    return None if value is None else DetectionTile(label, f"{value:.3f}", meaning, value, interval)


def detection_charts(figures: DetectionFigures) -> list[Chart]:
    """Return the curves there are points for."""
    return [chart for chart in (_precision_chart(figures), _threshold_chart(figures)) if chart.svg]


def _precision_chart(figures: DetectionFigures) -> Chart:
    strokes = {label: f"k{k % COLOURS}" for k, label in enumerate(figures.labels)}
    lines = [
        Line(label, [(step / 100, value) for step, value in enumerate(curve)], strokes[label])
        for label, curve in figures.precision_at_recall.items()
    ]
    meaning = (
        "Which share of the detections is right (up) when so many of the objects are found (right), at IoU 0.5. The "
        "area under a curve is the class's AP50."
    )
    names = tuple((strokes[label], _with_ap(figures, label)) for label in figures.precision_at_recall)
    svg = line_chart("Precision over recall", lines, from_zero=True, x_label="recall")
    return Chart("Precision over recall", meaning, svg, names)


def _with_ap(figures: DetectionFigures, label: str) -> str:
    value = figures.coco.classes[label].ap50
    return label if value is None else f"{label} {value:.3f}"


def _threshold_chart(figures: DetectionFigures) -> Chart:
    kinds = (("F1", "f1", "main"), ("precision", "precision", "k1"), ("recall", "recall", "k2"))
    lines = [
        Line(name, [(p.threshold, getattr(p, key)) for p in figures.thresholds], style) for name, key, style in kinds
    ]
    where = "the test pictures" if figures.validation is None else "the validation pictures"
    meaning = f"On {where}, all classes together. The upright line is the threshold: {figures.threshold_from}."
    svg = line_chart(
        "Threshold", lines, best=round(figures.threshold, 3), from_zero=True, x_label="confidence threshold"
    )
    return Chart("Confidence threshold", meaning, svg, tuple((style, name) for name, _, style in kinds))

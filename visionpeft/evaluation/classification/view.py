"""What the page shows of the figures: headline tiles and charts, each with a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from visionpeft.evaluation.charts import SERIES, Line, Mark, Point, share_chart
from visionpeft.evaluation.classification.about import RunAbout
from visionpeft.evaluation.classification.bootstrap import Figure
from visionpeft.evaluation.classification.calibration import Calibration
from visionpeft.evaluation.classification.figures import ClassFigures, ClassificationFigures
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.subgroups import SubgroupTable
from visionpeft.evaluation.page import NOTHING, Chart, Tile, spell_bytes, spell_seconds
from visionpeft.evaluation.row_charts import Row, interval_chart, matrix_chart

METRICS = {
    "auc": ("AUC", "Chance that a picture of the class has a higher score than one of the others; 0.5 is guessing."),
    "average_precision": ("Average precision", "Mean precision over all recalls; guessing gives the class's share."),
    "accuracy": ("Accuracy", "Share of pictures taken for what they are."),
    "label_accuracy": ("Accuracy by label", "Share of yes-or-no answers that are right."),
    "balanced_accuracy": ("Balanced accuracy", "Mean over classes of the share that is recognised."),
    "recall": ("Recognised", "Share of the pictures of a class that are taken for it."),
    "f1": ("F1", "Harmonic mean of sensitivity and positive predictive value, of the class that is looked for."),
    "f1_macro": ("F1, mean over classes", "Harmonic mean of precision and recall, each class alike."),
    "sensitivity": ("Sensitivity", "Share of the pictures of a class that are answered yes, at the operating point."),
    "specificity": ("Specificity", "Share of all other pictures that are answered no, at the operating point."),
    "positive_predictive_value": ("Positive predictive value", "Share of the answers yes that are right."),
    "negative_predictive_value": ("Negative predictive value", "Share of the answers no that are right."),
    "quadratic_kappa": ("Quadratic kappa", "Agreement beyond chance; errors count by the square of their steps."),
    "mean_absolute_error": ("Mean absolute error", "Steps between what a picture is and what it was taken for."),
}
"""Metric -> its name on the page, and what it says; in the order in which they are shown."""

CLASS_METRICS = ("auc", "average_precision", "recall", "f1")
SUBGROUP_METRICS = ("auc", "balanced_accuracy", "sensitivity", "specificity", "f1_macro")

_HEADLINES = {
    "binary": ("auc", "sensitivity", "specificity", "balanced_accuracy"),
    "multiclass": ("auc", "balanced_accuracy", "accuracy", "f1_macro"),
    "ordinal": ("quadratic_kappa", "auc", "balanced_accuracy", "mean_absolute_error"),
    "multilabel": ("auc", "average_precision", "f1_macro", "label_accuracy"),
}
_BEYOND_SHARES = {"quadratic_kappa": (-1.0, 1.0), "mean_absolute_error": None}


def tiles(found: ClassificationFigures, about: RunAbout) -> list[Tile]:
    """Return the headline figures."""
    shown = [_metric_tile(name, found) for name in _HEADLINES[found.kind]]
    shown.append(_calibration_tile(found))
    if about.trainable_parameters:
        shown.append(_adapter_tile(about))
    return shown


def charts(found: ClassificationFigures, test: Predictions) -> list[Chart]:
    """Return the curves, the confusion matrix and the reliability diagram that there are numbers for."""
    made = [*_curves(found, test), _reliability(found)]
    if found.confusion is not None:
        svg = matrix_chart("Confusion matrix", found.labels, found.confusion)
        meaning = (
            "Pictures of each class by what they were taken for, and their share of the row; the diagonal is right."
        )
        made.append(Chart("Confusion matrix", meaning, svg))
    return [chart for chart in made if chart.svg]


def class_chart(found: ClassificationFigures) -> Chart | None:
    """Return the classes' AUC with intervals; None for two classes, whose AUC is one."""
    if found.kind == "binary":
        return None
    rows = [
        _row(part.label, part.figures.get("auc"), f"{part.count:,} pictures", part.count < 10) for part in found.classes
    ]
    return _against_all("AUC of each class", rows, found.metrics["auc"])


def subgroup_chart(table: SubgroupTable, found: ClassificationFigures) -> Chart | None:
    """Return a column's subgroups with intervals, by AUC."""
    rows = [
        _row(group.name, group.figures.get("auc"), f"{group.count:,} pictures", group.small) for group in table.groups
    ]
    return _against_all(f"AUC by {table.column}", rows, found.metrics["auc"])


def spell_figure(found: Figure | None) -> dict[str, str]:
    """Return a metric as words for a table's cell: its value, its interval, and its note."""
    if found is None or found.value is None:
        return {"value": NOTHING, "interval": "", "note": found.note if found else ""}
    interval = "" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"
    return {"value": f"{found.value:.3f}", "interval": interval, "note": found.note}


def _metric_tile(name: str, found: ClassificationFigures) -> Tile:
    figure = found.metrics[name]
    title, meaning = METRICS[name]
    if figure.value is None:
        return Tile(title, NOTHING, f"{meaning} {_sentence(figure.note)}")
    ends = _BEYOND_SHARES.get(name, (0.0, 1.0))
    interval = spell_figure(figure)["interval"]
    words = f"{found.level:.0%} interval {interval}".replace("%", " %") if interval else ""
    if ends is None:
        return Tile(title, f"{figure.value:.3f}", meaning, interval=words)
    low, high = ends

    def share(value: float | None) -> float | None:
        return None if value is None else (value - low) / (high - low)

    return Tile(
        title, f"{figure.value:.3f}", meaning, share(figure.value), (f"{low:g}", f"{high:g}"),
        low=share(figure.low), high=share(figure.high), interval=words,
    )  # fmt: skip


def _calibration_tile(found: ClassificationFigures) -> Tile:
    meaning = "Mean distance between the probability that is claimed and the share that comes true; 0 is honest."
    if found.calibrated is not None and found.temperature is not None:
        temperature, after = found.temperature.value, found.calibrated.ece
        fitted = "as fitted on validation" if found.validation_count else "as the adapter holds"
        meaning += f" With logits divided by {temperature:.3g}, {fitted}: {after:.3f}."
    return Tile("Calibration error", f"{found.calibration.ece:.3f}", meaning)


def _adapter_tile(about: RunAbout) -> Tile:
    share = about.trainable_share
    part = f" of {about.total_parameters:,}" if share is not None else ""
    spent = f" The run took {spell_seconds(sum(about.seconds.values()))}." if about.seconds else ""
    size = f" The file has {spell_bytes(about.adapter_bytes)}." if about.adapter_bytes else ""
    value = f"{100 * share:.3g} %" if share is not None else f"{about.trainable_parameters:,}"
    meaning = f"{about.trainable_parameters:,}{part} numbers.{size}{spent}"
    return Tile(f"Trained{' by ' + about.method if about.method else ''}", value, meaning)


def _curves(found: ClassificationFigures, test: Predictions) -> Iterator[Chart]:
    """ROC and precision-recall, a line a class: all of them, or those with the lowest AUC."""
    asked = [(place, found.classes[label]) for place, label in enumerate(test.asked)]
    known = [(place, part) for place, part in asked if part.figures["auc"].value is not None]
    shown = sorted(known, key=lambda pair: pair[1].figures["auc"].value or 0.0)[: len(SERIES)]
    shown = sorted(shown, key=lambda pair: pair[0])
    styles = [(SERIES[number], place, part) for number, (place, part) in enumerate(shown)]
    which = "" if len(shown) == len(known) else f" Of {len(known)} classes the {len(shown)} with the lowest AUC."
    legend = tuple((style, _with_area(part, "auc")) for style, _, part in styles)
    roc = [Line(part.label, _roc(test, place), style) for style, place, part in styles]
    yield Chart(
        "ROC",
        f"Sensitivity against false alarms for every threshold; the dashed line is guessing, rings are the operating "
        f"points, numbers the areas.{which}",
        share_chart(
            "ROC curve", roc, x_label="1 - specificity", y_label="sensitivity", diagonal="guessing",
            marks=[_mark(part, style, "roc", len(styles)) for style, _, part in styles],
        ),
        legend,
    )  # fmt: skip
    recall = [Line(part.label, _precision_recall(test, place), style) for style, place, part in styles]
    yield Chart(
        "Precision and recall",
        f"How many of the answers yes are right, against how many of the class are found. Guessing gives the class's "
        f"share of the pictures.{which}",
        share_chart(
            "Precision-recall curve", recall, x_label="recall (sensitivity)", y_label="precision",
            marks=[_mark(part, style, "pr", len(styles)) for style, _, part in styles],
        ),
        tuple((style, _with_area(part, "average_precision")) for style, _, part in styles),
    )  # fmt: skip


def _with_area(part: ClassFigures, metric: str) -> str:
    return f"{part.label} {part.figures[metric].value or 0.0:.3f}"


def _mark(part: ClassFigures, style: str, chart: str, together: int) -> Mark:
    """The operating point on the test pictures; named where it is the only one."""
    values = {name: part.figures[name].value for name in ("sensitivity", "specificity", "positive_predictive_value")}
    numbers = {name: np.nan if value is None else value for name, value in values.items()}
    label = f"threshold {part.operating_point.threshold:.3g}" if part.operating_point and together == 1 else ""
    if chart == "roc":
        return Mark(label, 1.0 - numbers["specificity"], numbers["sensitivity"], style)
    return Mark(label, numbers["sensitivity"], numbers["positive_predictive_value"], style)


def _roc(test: Predictions, place: int) -> list[Point]:
    false_rate, true_rate, _ = roc_curve(test.truth[:, test.asked[place]], test.scores[:, place])
    return _thinned(false_rate, true_rate)


def _precision_recall(test: Predictions, place: int) -> list[Point]:
    """Steps: the precision at a threshold holds for the recalls since the threshold before, as the area counts it."""
    truth, scores = test.truth[:, test.asked[place]], test.scores[:, place]
    precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
    precision, recall = precision[-2::-1], recall[-2::-1]
    return _thinned(np.repeat(np.concatenate([[0.0], recall]), 2)[1:-1], np.repeat(precision, 2))


def _thinned(x: Any, y: Any) -> list[Point]:
    """Points without those that fall on one pixel with the point before."""
    points = list(zip(x.round(3).tolist(), y.round(3).tolist(), strict=True))
    return [point for place, point in enumerate(points) if place == 0 or point != points[place - 1]]


def _reliability(found: ClassificationFigures) -> Chart:
    lines = [_reliability_line("as the model gives them", found.calibration, "s0")]
    legend = [("s0", f"as the model gives them, ECE {found.calibration.ece:.3f}")]
    if found.calibrated is not None and found.temperature is not None:
        lines.append(_reliability_line("with the temperature", found.calibrated, "s1"))
        legend.append(("s1", f"at temperature {found.temperature.value:.3g}, ECE {found.calibrated.ece:.3f}"))
    claim = {
        "binary": f"the probability of '{found.labels[-1]}'", "multilabel": "each label's probability",
    }.get(found.kind, "the probability of the likeliest class")  # fmt: skip
    meaning = (
        f"How often it is so, against {claim}. Below the dashed line the model is too sure. A dot's area is its share "
        "of the pictures."
    )
    svg = share_chart("Reliability", lines, x_label="probability", y_label="share that is so", diagonal="honest")
    return Chart("Reliability", meaning, svg, tuple(legend))


def _reliability_line(label: str, measured: Calibration, style: str) -> Line:
    total = sum(part.count for part in measured.bins)
    points = [(part.confidence, part.share) for part in measured.bins]
    return Line(label, points, style, dots=True, weights=[part.count / total for part in measured.bins])


def _row(label: str, figure: Figure | None, note: str, faint: bool) -> Row:
    if figure is None:
        return Row(label, None, note=note, faint=faint)
    return Row(label, figure.value, figure.low, figure.high, f"{note}, few" if faint else note, faint)


def _against_all(title: str, rows: list[Row], whole: Figure) -> Chart | None:
    svg = interval_chart(title, rows, level=None if whole.value is None else ("all", whole.value))
    return Chart(title, "Lines are intervals; the dashed line is all test pictures together.", svg) if svg else None


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}." if note else ""

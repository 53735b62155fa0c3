"""All that a report says of a classifier's predictions, in one value that can be written as JSON."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict

from visionpeft.errors import DataError
from visionpeft.evaluation.classification.bootstrap import Figure, clusters
from visionpeft.evaluation.classification.calibration import (
    Calibration,
    Temperature,
    at_temperature,
    calibration,
    fit_temperature,
)
from visionpeft.evaluation.classification.measure import counts_of, measured
from visionpeft.evaluation.classification.operating import Held, OperatingPoint, operating_points
from visionpeft.evaluation.classification.predictions import LabelKind, Predictions
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.classification.statistics import Scored
from visionpeft.evaluation.classification.subgroups import SubgroupTable, subgroup_table


class ClassFigures(BaseModel):
    """One class.

    Attributes:
        label: its name.
        count: test pictures that it is true of.
        operating_point: from which probability on it is answered yes; None where it is not asked for (the first class
            of a binary task).
        figures: "auc", "average_precision", "sensitivity", "specificity", "positive_predictive_value",
            "negative_predictive_value" (at the operating point, against all the others), "recall" and "f1" (of the
            decisions).
    """

    model_config = ConfigDict(frozen=True)

    label: str
    count: int
    operating_point: OperatingPoint | None
    figures: dict[str, Figure]


class ClassificationFigures(BaseModel):
    """What was measured on the test pictures.

    Attributes:
        kind: of the labels.
        labels: names of the classes.
        count: test pictures.
        patients: among them; None where they are not known.
        validation_count: pictures that thresholds and temperature were chosen on.
        metrics: of the whole, by name, means over classes where there are several.
        classes: one a label.
        confusion: how often class i was taken for class j; None where several classes may be true.
        calibration: of the probabilities as the model gives them.
        temperature: fitted on validation, or the adapter's; None without either.
        calibrated: the same test pictures with their logits divided by the temperature.
        subgroups: one table a column.
        resamples: behind the intervals.
        resampled: what was drawn: "patients" or "pictures".
        level: share of the resamples in an interval.
        notes: what a reader has to know, one sentence each.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: LabelKind
    labels: tuple[str, ...]
    count: int
    patients: int | None
    validation_count: int
    metrics: dict[str, Figure]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    calibration: Calibration
    temperature: Temperature | None
    calibrated: Calibration | None
    subgroups: tuple[SubgroupTable, ...]
    resamples: int
    resampled: str
    level: float
    notes: tuple[str, ...]

    def flat(self) -> dict[str, float]:
        """Return the values there are, by name, for a log: metrics, "ece", "brier", "log_loss"."""
        known = {name: found.value for name, found in self.metrics.items() if found.value is not None}
        measured = self.calibration
        return known | {"ece": measured.ece, "brier": measured.brier, "log_loss": measured.log_loss}


def classification_figures(
    test: Predictions, validation: Predictions | None, config: ReportConfig, held: Held | None = None
) -> ClassificationFigures:
    """Measure a classifier on test pictures.

    Args:
        test: what is reported; nothing is chosen on it.
        validation: what thresholds and temperature are chosen on; None where there is none.
        config: what to measure.
        held: thresholds and temperature of the adapter, taken where there is no validation.

    Raises:
        DataError: the two have other labels, or a subgroup's column is missing.
    """
    if validation is not None and (validation.labels, validation.kind) != (test.labels, test.kind):
        raise DataError(
            f"validation has the labels {validation.labels} ({validation.kind}), the test {test.labels} ({test.kind}): "
            "expected the same of both"
        )
    points = operating_points(validation, [test.labels[label] for label in test.asked], config.operating_point, held)
    scored = Scored(test, np.array([point.threshold for point in points]))
    found = measured(scored, config)
    temperature = _temperature(validation, held)
    before = calibration(test, config.bins)
    after = calibration(at_temperature(test, temperature.value), config.bins) if temperature is not None else None
    patients = clusters(test, config.patient_column)
    by_label = dict(zip(test.asked, points, strict=True))
    return ClassificationFigures(
        kind=test.kind,
        labels=test.labels,
        count=len(test),
        patients=None if patients is None else int(patients.max()) + 1,
        validation_count=0 if validation is None else len(validation),
        metrics=found.whole,
        classes=tuple(
            ClassFigures(label=label, count=count, operating_point=by_label.get(place), figures=found.classes[place])
            for place, (label, count) in enumerate(counts_of(test).items())
        ),
        confusion=_confusion(scored),
        calibration=before,
        temperature=temperature,
        calibrated=after,
        subgroups=tuple(subgroup_table(test, scored.thresholds, column, config) for column in config.subgroups),
        resamples=config.resamples,
        resampled="pictures" if patients is None else "patients",
        level=config.level,
        notes=(
            *_notes(test, validation, points, held),
            *_temperature_notes(temperature, before, after),
        ),
    )


def _confusion(scored: Scored) -> tuple[tuple[int, ...], ...] | None:
    if scored.predictions.kind == "multilabel":
        return None
    table = scored.confusion(np.ones((1, len(scored.predictions))))[0]
    return tuple(tuple(int(count) for count in row) for row in table)


def _temperature(validation: Predictions | None, held: Held | None) -> Temperature | None:
    if validation is not None:
        return fit_temperature(validation)
    return Temperature(value=held.temperature) if held is not None and held.temperature != 1 else None


def _notes(
    test: Predictions, validation: Predictions | None, points: list[OperatingPoint], held: Held | None
) -> Iterator[str]:
    if validation is None and held is None:
        yield "There is no validation set: probabilities were not calibrated, and thresholds are the fixed ones."
    told = validation is not None or held is not None
    for note in dict.fromkeys(point.note for point in points if point.note and told):
        yield f"A threshold is the fixed one: {note}."
    for label, count in counts_of(test).items():
        if count == 0:
            yield f"No test picture is '{label}': nothing can be said of that class."
        elif count == len(test) and test.kind == "multilabel":
            yield f"Every test picture is '{label}': its specificity and AUC cannot be measured."


def _temperature_notes(fitted: Temperature | None, before: Calibration, after: Calibration | None) -> Iterator[str]:
    if fitted is not None and fitted.note:
        yield f"Temperature: {fitted.note}."
    if after is not None and after.log_loss > before.log_loss:
        yield "The temperature that fits validation best raises the log loss of the test: the two sets differ."
    elif after is not None and after.ece > before.ece:
        yield "The temperature lowers the log loss but not the calibration error: the model is not just too sure."

"""From which probability on the answer is yes: chosen on validation, never on the pictures that are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.metrics import roc_curve

from visionpeft.evaluation.classification.predictions import Array, Predictions, Truth
from visionpeft.evaluation.classification.settings import OperatingPointConfig


class OperatingPoint(BaseModel):
    """The threshold of one class.

    Attributes:
        label: the class that is answered yes or no.
        threshold: the answer is yes from this probability on.
        rule: how it was chosen, in words.
        chosen_on: "validation", "adapter" where it is what the adapter holds of its own validation, or "fixed" where no
            picture had a say in it.
        sensitivity: on validation; None where it was not chosen there.
        specificity: likewise.
        note: why the rule could not be followed; "" where it was.
    """

    model_config = ConfigDict(frozen=True)

    label: str
    threshold: float
    rule: str
    chosen_on: Literal["validation", "adapter", "fixed"]
    sensitivity: float | None = None
    specificity: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Held:
    """What an adapter holds that was chosen on its own validation pictures: taken where nothing is chosen anew.

    Attributes:
        thresholds: by label.
        temperature: what logits are divided by; 1 where none was fitted.
    """

    thresholds: Mapping[str, float]
    temperature: float = 1.0


@dataclass(frozen=True)
class _Curve:
    """Thresholds, falling, with the shares of true and of false examples that are answered yes."""

    thresholds: Array
    true_rate: Array
    false_rate: Array


def operating_points(
    validation: Predictions | None, labels: list[str], config: OperatingPointConfig, held: Held | None = None
) -> list[OperatingPoint]:
    """Return the threshold of each class asked for.

    Args:
        validation: what the model said of pictures that it was neither trained nor is reported on; None where there
            are none.
        labels: of the classes asked for.
        config: the rule.
        held: by the adapter; taken where there is no validation and the rule is not "fixed".
    """
    if config.rule == "fixed":
        return [_fixed(label, config, "") for label in labels]
    if validation is None:
        why = f"there are no validation pictures to choose by the rule ({config.words}) on"
        known = held.thresholds if held is not None else {}
        return [_held(label, known[label]) if label in known else _fixed(label, config, why) for label in labels]
    probabilities, truth = validation.probabilities[:, validation.asked], validation.truth[:, validation.asked]
    return [_chosen(label, probabilities[:, place], truth[:, place], config) for place, label in enumerate(labels)]


def _fixed(label: str, config: OperatingPointConfig, note: str) -> OperatingPoint:
    threshold = config.thresholds.get(label, config.threshold)
    return OperatingPoint(label=label, threshold=threshold, rule="fixed threshold", chosen_on="fixed", note=note)


def _held(label: str, threshold: float) -> OperatingPoint:
    return OperatingPoint(label=label, threshold=threshold, rule="the adapter's threshold", chosen_on="adapter")


def _chosen(label: str, probabilities: Array, truth: Truth, config: OperatingPointConfig) -> OperatingPoint:
    if truth.all() or not truth.any():
        lacking = "against" if truth.all() else "for"
        return _fixed(label, config, f"validation has no picture that speaks {lacking} '{label}'")
    curve = _curve(probabilities, truth)
    place = _place(curve, config)
    return OperatingPoint(
        label=label,
        threshold=float(curve.thresholds[place]),
        rule=config.words,
        chosen_on="validation",
        sensitivity=float(curve.true_rate[place]),
        specificity=float(1.0 - curve.false_rate[place]),
    )


def _curve(probabilities: Array, truth: Truth) -> _Curve:
    false_rate, true_rate, thresholds = roc_curve(truth, probabilities, drop_intermediate=False)
    never = np.nextafter(thresholds[1], np.inf)  # as a number, where scikit-learn says infinity
    return _Curve(np.concatenate([[never], thresholds[1:]]), true_rate, false_rate)


def _place(curve: _Curve, config: OperatingPointConfig) -> int:
    """Place on the curve: where several are as good, the one that answers yes more often."""
    if config.rule == "youden":
        index = (curve.true_rate - curve.false_rate).round(12)
        return int(np.flatnonzero(index == index.max())[-1])
    goal = (config.at_least or 0.0) - 1e-12
    if config.rule == "sensitivity":
        enough = np.flatnonzero(curve.true_rate >= goal)
        best = curve.false_rate[enough].min()
        return int(enough[curve.false_rate[enough] == best][-1])
    enough = np.flatnonzero(1.0 - curve.false_rate >= goal)
    return int(enough[-1])

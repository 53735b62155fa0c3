"""Every metric of some predictions with its interval, and a reason where it has none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visionpeft.evaluation.classification.bootstrap import Figure, figure, resampled
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.classification.statistics import MEANS, Scored, statistics

_EACH = "_each"
_NEEDS_BOTH = ("auc", "average_precision", "sensitivity", "specificity", "balanced_accuracy")


@dataclass(frozen=True)
class Measured:
    """Metrics of the whole, and of each class by the class's place; a class has those that are asked of it."""

    whole: dict[str, Figure]
    classes: list[dict[str, Figure]]


def measured(scored: Scored, config: ReportConfig) -> Measured:
    """Measure predictions, with bootstrap intervals.

    Args:
        scored: the predictions and their thresholds.
        config: resamples, level, seed.
    """
    given = scored.predictions
    plain, samples = resampled(given, config, lambda weights: statistics(scored, weights))
    whole = {
        name: _with_note(figure(float(value[0]), samples[name], config, _no_mean(name)), _left_out(name, scored))
        for name, value in plain.items()
        if not name.endswith(_EACH)
    }
    classes: list[dict[str, Figure]] = [{} for _ in given.labels]
    for name in (name for name in plain if name.endswith(_EACH)):
        metric = name.removesuffix(_EACH)
        for place, label in enumerate(_columns(name, scored)):
            reason = _no_class(metric, given, label)
            classes[label][metric] = figure(float(plain[name][0, place]), samples[name][:, place], config, reason)
    return Measured(whole, classes)


def _with_note(found: Figure, note: str) -> Figure:
    if not note or found.value is None:
        return found
    return found.model_copy(update={"note": "; ".join(text for text in (note, found.note) if text)})


def _left_out(name: str, scored: Scored) -> str:
    """Which classes a mean over classes leaves out."""
    for mean, of in MEANS:
        if mean == name and of in scored.by_class:
            gone = np.flatnonzero(np.isnan(scored.by_class[of][0])).tolist()
            labels = [scored.predictions.labels[label] for label in _columns(of, scored)]
            return f"mean without {_listed([labels[place] for place in gone])}" if gone else ""
    return ""


def _columns(name: str, scored: Scored) -> list[int]:
    """The classes that the columns of a metric by class are of."""
    given = scored.predictions
    return given.asked if scored.by_class[name].shape[1] == len(given.asked) else list(range(len(given.labels)))


def _listed(labels: list[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:3])
    return shown if len(labels) <= 3 else f"{shown} and {len(labels) - 3} more"


def _no_mean(name: str) -> str:
    if name in _NEEDS_BOTH:
        return "no value: the pictures do not have both examples and counterexamples of any class"
    if name.endswith("predictive_value"):
        return f"no value: nothing is answered {'no' if name.startswith('negative') else 'yes'}"
    return (
        "no value: the pictures are all of one class and all taken for it" if name == "quadratic_kappa" else "no value"
    )


def _no_class(metric: str, given: Predictions, label: int) -> str:
    truth, name = given.truth[:, label], given.labels[label]
    if metric == "positive_predictive_value":
        return f"no value: no picture is taken for '{name}'"
    if metric == "negative_predictive_value":
        return f"no value: every picture is taken for '{name}'"
    if metric == "f1":
        return f"no value: no picture is '{name}' or taken for it"
    if truth.all():
        return f"no value: every picture is '{name}'"
    return f"no value: no picture is '{name}'"


def counts_of(given: Predictions) -> dict[str, int]:
    """Return how many pictures each class is true of, by label."""
    return dict(zip(given.labels, given.truth.sum(axis=0).tolist(), strict=True))

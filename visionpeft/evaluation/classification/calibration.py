"""Whether probabilities mean what they say: calibration error, Brier score, temperature scaling."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize
from scipy.special import expit, softmax

from visionpeft.evaluation.classification.predictions import (
    POSITIVE,
    Array,
    LabelKind,
    Predictions,
    Truth,
    log_probabilities,
)

Bins = Literal["width", "mass"]

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Beyond these the validation pictures are all right, or all but noise, and tell nothing more."""


class ReliabilityBin(BaseModel):
    """Examples whose probabilities lie in one bin.

    Attributes:
        low: of the bin.
        high: of the bin.
        count: of the examples.
        confidence: their mean probability.
        share: how many of them are true.
    """

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    count: int
    confidence: float
    share: float


class Calibration(BaseModel):
    """How well probabilities fit what happens.

    Attributes:
        ece: expected calibration error with bins of equal width.
        ece_equal_mass: with bins of equally many examples.
        brier: Brier score.
        log_loss: mean negative logarithm of the probability of what is true, in nats.
        bins: of the reliability diagram, equal widths, those with examples.
    """

    model_config = ConfigDict(frozen=True)

    ece: float
    ece_equal_mass: float
    brier: float
    log_loss: float
    bins: tuple[ReliabilityBin, ...]


class Temperature(BaseModel):
    """What logits are to be divided by: above 1 the model is too sure, below 1 not sure enough.

    Attributes:
        value: fitted on validation.
        note: that it lies at the end of what is searched; "" where it does not.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    note: str = ""


def calibration(given: Predictions, bins: int) -> Calibration:
    """Measure the probabilities of predictions.

    Args:
        given: the examples.
        bins: how many.
    """
    confidence, correct = claims(given)
    return Calibration(
        ece=calibration_error(confidence, correct, bins, "width"),
        ece_equal_mass=calibration_error(confidence, correct, bins, "mass"),
        brier=float(brier_scores(given).mean()),
        log_loss=float(losses(given).mean()),
        bins=tuple(reliability(confidence, correct, bins, "width")),
    )


def claims(given: Predictions) -> tuple[Array, Truth]:
    """Return what is claimed and whether it is so: probabilities [M], and [M].

    "binary": the probability of the class that is looked for. "multilabel": every label's. Otherwise the likeliest
    class's, as in Guo et al. 2017.
    """
    if given.kind == "multilabel":
        return given.probabilities.ravel(), given.truth.ravel()
    if given.kind == "binary":
        return given.probabilities[:, POSITIVE], given.truth[:, POSITIVE]
    return given.probabilities.max(axis=1), given.probabilities.argmax(axis=1) == given.targets


def calibration_error(confidence: Array, correct: Truth, bins: int, kind: Bins) -> float:
    """Σ |B| / M · |mean probability in B - share that is true in B| (Guo et al. 2017, arXiv:1706.04599)."""
    found = reliability(confidence, correct, bins, kind)
    return sum(part.count * abs(part.confidence - part.share) for part in found) / len(confidence)


def reliability(confidence: Array, correct: Truth, bins: int, kind: Bins) -> list[ReliabilityBin]:
    """Return the bins that have examples.

    Args:
        confidence: [M] in [0, 1].
        correct: [M].
        bins: how many.
        kind: "width" parts [0, 1] evenly, each bin with its upper end; "mass" parts the examples, sorted, evenly.
    """
    order = np.argsort(confidence, kind="stable")
    if kind == "mass":
        parts = np.array_split(order, bins)
        edges = [(float(confidence[part[0]]), float(confidence[part[-1]])) for part in parts if len(part)]
    else:
        place = np.clip(np.ceil(confidence[order] * bins).astype(int) - 1, 0, bins - 1)
        parts = np.split(order, np.searchsorted(place, np.arange(1, bins)))
        edges = [(number / bins, (number + 1) / bins) for number, part in enumerate(parts) if len(part)]
    filled = [part for part in parts if len(part)]
    return [
        ReliabilityBin(
            low=low,
            high=high,
            count=len(part),
            confidence=float(confidence[part].mean()),
            share=float(correct[part].mean()),
        )
        for part, (low, high) in zip(filled, edges, strict=True)
    ]


def brier_scores(given: Predictions) -> Array:
    """Squared error of the probabilities, [N].

    "binary": of the class looked for, in [0, 1]. "multilabel": mean over labels. Otherwise the sum over classes, in
    [0, 2] (Brier 1950).
    """
    squared = (given.probabilities - given.truth) ** 2
    if given.kind == "binary":
        return squared[:, POSITIVE]
    return squared.mean(axis=1) if given.kind == "multilabel" else squared.sum(axis=1)


def losses(given: Predictions) -> Array:
    """Negative log-likelihood, [N] nats; a mean over labels where several may be true."""
    return _losses(given.logits.astype(np.float64), given.truth, given.kind)


def fit_temperature(validation: Predictions) -> Temperature:
    """Return the temperature T > 0 that makes logits / T likeliest on validation (Guo et al. 2017), by L-BFGS."""
    logits, truth = validation.logits.astype(np.float64), validation.truth
    ends = np.log([LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE])
    fitted: Any = minimize(
        _loss_and_slope, np.zeros(1), (logits, truth, validation.kind), "L-BFGS-B", jac=True,
        bounds=[tuple(ends)], options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    value = float(np.exp(fitted.x[0]))
    stopped = bool(np.isclose(fitted.x[0], ends, atol=1e-6).any())
    note = f"the best temperature lies beyond {value:.3g}, the end of what is searched" if stopped else ""
    return Temperature(value=value, note=note)


def at_temperature(given: Predictions, temperature: float) -> Predictions:
    """Return the predictions with their logits divided by ``temperature``."""
    return Predictions(given.names, given.logits / temperature, given.targets, given.labels, given.kind, given.columns)


def _losses(logits: Array, truth: Truth, kind: LabelKind) -> Array:
    if kind == "multilabel":
        return np.logaddexp(0.0, np.where(truth, -logits, logits)).mean(axis=1)
    return -np.where(truth, log_probabilities(logits, kind), 0.0).sum(axis=1)


def _loss_and_slope(
    log_temperature: Array, logits: Array, truth: npt.NDArray[np.bool_], kind: LabelKind
) -> tuple[float, Array]:
    """Mean loss of logits / T, and its derivative by log T: mean of -Σ_c (p_c - y_c) z_c / T."""
    scaled = logits * np.exp(-log_temperature[0])
    error = (expit(scaled) if kind == "multilabel" else softmax(scaled, axis=1)) - truth
    terms = (error * scaled).mean(axis=1) if kind == "multilabel" else (error * scaled).sum(axis=1)
    return float(_losses(scaled, truth, kind).mean()), np.array([-terms.mean()])

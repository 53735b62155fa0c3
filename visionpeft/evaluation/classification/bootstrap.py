"""Resamples of examples, or of patients with all their examples, and the intervals that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from visionpeft.evaluation.classification.predictions import Array, Predictions
from visionpeft.evaluation.classification.settings import ReportConfig

Integers = npt.NDArray[np.int64]
Table = dict[str, Array]

_CHUNK = 2_000_000
"""Weights worked on at once: 16 MB of them."""


class Figure(BaseModel):
    """A metric with its bootstrap interval.

    Attributes:
        value: of the examples themselves; None where it has none.
        low: lower end of the interval; None where there is no interval.
        high: its upper end.
        note: why there is no value or no interval, or which resamples had to be left out.
    """

    model_config = ConfigDict(frozen=True)

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def resampled(
    predictions: Predictions, config: ReportConfig, measured: Callable[[Array], Table]
) -> tuple[Table, Table]:
    """Return the metrics of the examples, [1, …], and of every resample, [R, …], by name.

    Args:
        predictions: the examples; resamples keep the number of each class (of patients, by the class that most of
            their pictures have), except where several classes may be true together.
        config: how many resamples, their seed, and the column of the patients.
        measured: weights [R, N] to metrics.
    """
    plain = measured(np.ones((1, len(predictions))))
    parts = [measured(weights) for weights in _weights(predictions, config)]
    samples = {
        name: np.concatenate([part[name] for part in parts]) if parts else value[:0] for name, value in plain.items()
    }
    return plain, samples


def figure(value: float, samples: Array, config: ReportConfig, reason: str) -> Figure:
    """Return a value with the percentile interval of its resamples [R].

    Args:
        value: NaN where there is none.
        samples: NaN where a resample has none; those are left out, and it is said.
        config: the level.
        reason: why there would be no value.
    """
    if not np.isfinite(value):
        return Figure(note=reason)
    known = samples[np.isfinite(samples)]
    lost = len(samples) - len(known)
    if len(known) < 0.5 * len(samples) or not len(samples):
        why = f"no interval: {lost:,} of {len(samples):,} resamples have no value" if len(samples) else ""
        return Figure(value=value, note=why)
    lost_words = f"{lost:,} of {len(samples):,} resamples have no value and are left out" if lost else ""
    if np.ptp(known) == 0.0:
        alike = "no interval: every resample gives the same, there are too few examples or errors"
        return Figure(value=value, note="; ".join(words for words in (alike, lost_words) if words))
    tail = (1.0 - config.level) / 2
    low, high = np.quantile(known, [tail, 1.0 - tail])
    return Figure(value=value, low=float(low), high=float(high), note=lost_words)


def clusters(predictions: Predictions, column: str) -> Integers | None:
    """Return which patient each example is of, [N] numbers from 0; None where no patients are known.

    An example whose patient is "" is alone.
    """
    if column not in predictions.columns:
        return None
    names = [(patient, "") if patient else ("", str(row)) for row, patient in enumerate(predictions.columns[column])]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _weights(predictions: Predictions, config: ReportConfig) -> Iterator[Array]:
    """How often each example is in each resample, [R, N] a chunk; a function of (seed, resample) alone."""
    group = clusters(predictions, config.patient_column)
    members = np.arange(len(predictions)) if group is None else group
    strata = _strata(predictions, members)
    per_chunk = max(1, _CHUNK // len(predictions))
    for first in range(0, config.resamples, per_chunk):
        chosen = range(first, min(first + per_chunk, config.resamples))
        yield np.stack([_drawn(strata, (config.seed, resample)) for resample in chosen])[:, members].astype(float)


def _strata(predictions: Predictions, members: Integers) -> list[Integers]:
    """Clusters that are drawn among themselves: by class, so that every resample has as many of each."""
    count = int(members.max()) + 1
    if predictions.kind == "multilabel":
        return [np.arange(count)]
    votes = np.zeros((count, len(predictions.labels)), dtype=np.int64)
    np.add.at(votes, (members, predictions.targets.astype(np.int64)), 1)
    most = votes.argmax(axis=1)
    return [np.flatnonzero(most == label) for label in np.unique(most)]


def _drawn(strata: Sequence[Integers], seed: tuple[int, int]) -> Integers:
    """How often each cluster is drawn."""
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = np.concatenate([stratum[generator.integers(len(stratum), size=len(stratum))] for stratum in strata])
    return np.bincount(drawn, minlength=sum(map(len, strata)))

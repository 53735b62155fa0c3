"""What a classifier said of some pictures and what is true of them, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logsumexp, softmax

from visionpeft.errors import DataError, did_you_mean

LabelKind = Literal["binary", "multiclass", "multilabel", "ordinal"]
Array = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

POSITIVE = 1
"""Of a binary task: the class that is looked for."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said of N pictures.

    Attributes:
        names: of the pictures, [N].
        logits: [N, C]; softmax makes probabilities of them, a sigmoid each where ``kind`` is "multilabel".
        targets: [N] class indices, or [N, C] of 0 and 1 where ``kind`` is "multilabel".
        labels: the classes' names, [C]; of a binary task the second is the one that is looked for.
        kind: how many classes may be true, and whether their order means something.
        columns: more about the pictures, each [N]: patient, site, age, …; "" is unknown.

    Raises:
        DataError: lengths differ, a logit is not finite, or a target names no class.
    """

    names: tuple[str, ...]
    logits: npt.NDArray[np.floating[Any]]
    targets: npt.NDArray[np.integer[Any]]
    labels: tuple[str, ...]
    kind: LabelKind
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def log_probabilities(self) -> Array:
        """Logarithms of `probabilities` [N, C]."""
        return log_probabilities(self.logits.astype(np.float64), self.kind)

    @cached_property
    def probabilities(self) -> Array:
        """Probability of each class [N, C]; rows sum to 1 unless several classes may be true."""
        logits = self.logits.astype(np.float64)
        return expit(logits) if self.kind == "multilabel" else softmax(logits, axis=1)

    @cached_property
    def truth(self) -> Truth:
        """Whether each class is true of each picture [N, C]."""
        if self.kind == "multilabel":
            return self.targets.astype(bool)
        return self.targets[:, None] == np.arange(len(self.labels))[None]

    @property
    def asked(self) -> list[int]:
        """The classes asked for with a yes or a no: all; of a binary task only the one that is looked for."""
        return [POSITIVE] if self.kind == "binary" else list(range(len(self.labels)))

    @cached_property
    def scores(self) -> Array:
        """Log-odds of each class asked for, [N, Q]: the order of the probabilities without their ties near 0 and 1."""
        logits = self.logits.astype(np.float64)
        if self.kind == "multilabel":
            return logits
        # shifted and sorted, so that what is equal on paper is equal to the last bit: ties count half in an AUC
        shifted = logits - logits.max(axis=1, keepdims=True)
        rest = [logsumexp(np.sort(np.delete(shifted, column, axis=1), axis=1), axis=1) for column in self.asked]
        return shifted[:, self.asked] - np.stack(rest, axis=1)

    def column(self, name: str) -> tuple[str, ...]:
        """Return a column.

        Raises:
            DataError: there is none of that name.
        """
        if name not in self.columns:
            known = ", ".join(f"'{column}'" for column in self.columns) or "none"
            raise DataError(
                f"the predictions have no column '{name}': there is {known}.{did_you_mean(name, self.columns)}"
            )
        return self.columns[name]

    def subset(self, rows: npt.NDArray[np.intp]) -> Predictions:
        """Return the predictions of some pictures, in the order of ``rows``."""
        columns = {name: tuple(values[row] for row in rows) for name, values in self.columns.items()}
        names = tuple(self.names[row] for row in rows)
        return Predictions(names, self.logits[rows], self.targets[rows], self.labels, self.kind, columns)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all parts, at least one, in their order; a column that a part lacks is "" there."""
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    return Predictions(
        names=tuple(name for part in parts for name in part.names),
        logits=np.concatenate([part.logits for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        labels=parts[0].labels,
        kind=parts[0].kind,
        columns={name: tuple(v for p in parts for v in p.columns.get(name, ("",) * len(p))) for name in columns},
    )


def log_probabilities(logits: Array, kind: LabelKind) -> Array:
    """Logarithms of the probabilities that logits [N, C] stand for."""
    if kind == "multilabel":
        return -np.logaddexp(0.0, -logits)
    return logits - logsumexp(logits, axis=1, keepdims=True)


def _check_shapes(given: Predictions) -> None:
    count, classes = len(given.names), len(given.labels)
    if classes < 2 and given.kind != "multilabel":
        raise DataError(f"{classes} class is nothing to tell apart: expected at least two labels")
    if given.kind == "binary" and classes != 2:
        raise DataError(f"a binary task has 2 labels, not {classes}: use the kind 'multiclass'")
    if count == 0:
        raise DataError("there are no predictions: expected at least one picture")
    if given.logits.shape != (count, classes):
        raise DataError(f"logits have the shape {given.logits.shape}: expected {(count, classes)}: pictures, labels")
    wanted = (count, classes) if given.kind == "multilabel" else (count,)
    if given.targets.shape != wanted:
        raise DataError(f"targets have the shape {given.targets.shape}: expected {wanted} for the kind '{given.kind}'")
    for name, values in given.columns.items():
        if len(values) != count:
            raise DataError(f"the column '{name}' has {len(values)} values for {count} pictures: expected one each")


def _check_values(given: Predictions) -> None:
    wild = ~np.isfinite(given.logits).all(axis=1)
    if wild.any():
        raise DataError(
            f"the logits of '{given.names[int(wild.argmax())]}' are not finite, nor those of {int(wild.sum()) - 1} "
            "other pictures: the model overflowed; predict in float32"
        )
    highest = 1 if given.kind == "multilabel" else len(given.labels) - 1
    outside = ((given.targets < 0) | (given.targets > highest)).reshape(len(given), -1).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(f"the target of '{given.names[row]}' is {given.targets[row]}: expected 0 to {highest}")

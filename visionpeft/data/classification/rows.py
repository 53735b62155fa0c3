"""From a source's rows to examples: labels become indices, and what is unusable is told by file and row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from visionpeft.data.classification.labelled import Example
from visionpeft.data.classification.reader import PictureReader
from visionpeft.data.classification.settings import LabelKind, PicturesConfig
from visionpeft.errors import DataError, did_you_mean
from visionpeft.progress import Progress

_SHOWN = 10


@dataclass(frozen=True)
class Row:
    """A picture as its source has it.

    Attributes:
        where: file and row, for messages.
        name: as in ``Example``.
        labels: the texts of the labels that are present.
        patient: as in ``Example``.
        split: as in ``Example``.
        columns: as in ``Example``.
    """

    where: str
    name: str
    labels: tuple[str, ...]
    patient: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        rows: one a picture, in an order that does not depend on the machine.
        reader: reads them.
        labels: in the source's own order, where it has one.
        several: whether the source can give a picture several labels.
    """

    rows: Sequence[Row]
    reader: PictureReader
    labels: tuple[str, ...] | None = None
    several: bool = False


class Faults:
    """Collects what is unusable: an error that names all of it, or lines and a count.

    Args:
        config: says which, in ``on_bad``.
        progress: where the lines go.
    """

    def __init__(self, config: PicturesConfig, progress: Progress) -> None:
        self._skip = config.on_bad == "skip"
        self._progress = progress
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Take note of one unusable row."""
        self._lines.append(line)
        if self._skip:
            self._progress.say(f"left out: {line}")

    def settle(self, usable: int) -> None:
        """Raise, or say how many were left out.

        Raises:
            DataError: there were faults and none may be skipped, or ``usable`` rows are none.
        """
        if self._lines and not self._skip:
            more = len(self._lines) - _SHOWN
            tail = [f"and {more} more"] if more > 0 else []
            remedy = "Mend them, or set on_bad: skip to leave them out."
            raise DataError("\n".join([*self._lines[:_SHOWN], *tail, remedy]))
        if self._lines:
            self._progress.say(f"left out {len(self._lines)} unusable rows, {usable} are usable.")
        if not usable:
            raise DataError("no usable picture is left." if self._lines else "there are no pictures.")


def kind_of(listing: Listing, config: PicturesConfig, labels: Sequence[str]) -> LabelKind:
    """Return what a label is: as the settings say, else as the source and the number of labels show.

    Raises:
        DataError: the settings' kind does not fit the labels.
    """
    if config.kind is None:
        return "multilabel" if listing.several else "binary" if len(labels) == 2 else "multiclass"
    if config.kind == "binary" and len(labels) != 2:
        raise DataError(f"kind is binary, and there are {len(labels)} labels: {_some(labels)}. Set kind: multiclass.")
    if config.kind == "ordinal" and config.labels is None and not all(map(_is_number, labels)):
        raise DataError(f"kind is ordinal: give the order in labels, from least to most, of {_some(labels)}.")
    return config.kind


def label_order(listing: Listing, config: PicturesConfig) -> tuple[str, ...]:
    """Return the labels in order: of the settings, of the source, else sorted (numbers by value).

    Raises:
        DataError: there are fewer than two.
    """
    found = {label for row in listing.rows for label in row.labels}
    labels = config.labels or listing.labels or tuple(sorted(found, key=_natural))
    if len(labels) < 2 and not (listing.several or config.kind == "multilabel"):
        raise DataError(f"there is {len(labels)} label ({_some(labels)}), and two are needed to tell pictures apart.")
    return labels


def example_of(row: Row, labels: Mapping[str, int], kind: LabelKind) -> Example:
    """Return the example of a row.

    Args:
        row: as its source has it.
        labels: the label names and their indices.
        kind: how many labels a picture has.

    Raises:
        DataError: a label is unknown, or there is none or more than one where one is needed.
    """
    unknown = [label for label in row.labels if label not in labels]
    if unknown:
        near = did_you_mean(unknown[0], labels)
        raise DataError(f"{row.where}: the label '{unknown[0]}' is not among {_some(list(labels))}.{near}")
    if kind != "multilabel" and len(row.labels) != 1:
        count = f"{len(row.labels)} labels ({_some(row.labels)})" if row.labels else "no label"
        raise DataError(f"{row.where}: {row.name} has {count}, and one is needed with kind: {kind}.")
    target = tuple(sorted({labels[label] for label in row.labels}))
    return Example(row.name, target, row.patient, row.split, row.columns)


def examples_of(
    rows: Iterable[Row], labels: Sequence[str], kind: LabelKind, faults: Faults
) -> list[tuple[Row, Example]]:
    """Return rows with their examples; the unusable ones go to ``faults``."""
    index = {label: number for number, label in enumerate(labels)}
    found: list[tuple[Row, Example]] = []
    for row in rows:
        try:
            found.append((row, example_of(row, index, kind)))
        except DataError as error:
            faults.add(str(error))
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _natural(text: str) -> tuple[bool, float, str]:
    return (False, float(text), text) if _is_number(text) else (True, 0.0, text)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

"""The metrics of parts of the test pictures: by site, sex, scanner, age, or any other column."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from visionpeft.evaluation.classification.bootstrap import Figure
from visionpeft.evaluation.classification.measure import counts_of, measured
from visionpeft.evaluation.classification.predictions import Array, Predictions
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.classification.statistics import Scored

Rows = npt.NDArray[np.intp]
UNKNOWN = "unknown"


class Subgroup(BaseModel):
    """The test pictures that have one value in a column.

    Attributes:
        name: the value, "23 to 41", "other values" or "unknown".
        count: pictures.
        counts: pictures each class is true of, by label.
        small: whether there are too few pictures to rely on the figures.
        figures: metrics by name, with intervals of resamples within the subgroup.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    count: int
    counts: dict[str, int]
    small: bool
    figures: dict[str, Figure]


class SubgroupTable(BaseModel):
    """A column's subgroups, largest first; those of numbers ascending.

    Attributes:
        column: its name.
        groups: parts of the test pictures; together they are all of them.
        note: how values were put together; "" where each is a subgroup.
    """

    model_config = ConfigDict(frozen=True)

    column: str
    groups: tuple[Subgroup, ...]
    note: str = ""


def subgroup_table(test: Predictions, thresholds: Array, column: str, config: ReportConfig) -> SubgroupTable:
    """Measure the test pictures by the values of a column.

    Args:
        test: the predictions.
        thresholds: [Q], the same for all subgroups.
        column: its name.
        config: how many values are shown, and from how many pictures on a subgroup is not small.

    Raises:
        DataError: there is no such column.
    """
    parts, note = _parts(test.column(column), config.most_groups)
    groups = [_subgroup(name, test.subset(rows), thresholds, config) for name, rows in parts.items()]
    return SubgroupTable(column=column, groups=tuple(groups), note=note)


def _subgroup(name: str, part: Predictions, thresholds: Array, config: ReportConfig) -> Subgroup:
    return Subgroup(
        name=name,
        count=len(part),
        counts=counts_of(part),
        small=len(part) < config.smallest_group,
        figures=measured(Scored(part, thresholds), config).whole,
    )


def _parts(values: tuple[str, ...], most: int) -> tuple[dict[str, Rows], str]:
    """The rows of each subgroup, and how values were put together."""
    cells = np.array([value.strip() for value in values], dtype=object)
    known = [value for value in dict.fromkeys(cells.tolist()) if value]
    unknown: dict[str, Rows] = {UNKNOWN: rows} if len(rows := np.flatnonzero(cells == "")) else {}
    numbers = np.array([_number(value) for value in cells])
    if len(known) <= most:
        numeric = all(math.isfinite(_number(value)) for value in known)
        by_size = {value: -int((cells == value).sum()) for value in known}
        ordered = sorted(known, key=_number if numeric else by_size.__getitem__)
        return {value: np.flatnonzero(cells == value) for value in ordered} | unknown, ""
    if all(math.isfinite(_number(value)) for value in known):
        return _quartiles(numbers) | unknown, f"{len(known)} different numbers, cut at their quartiles"
    largest = sorted(known, key=lambda value: -int((cells == value).sum()))[: most - 1]
    rest = np.flatnonzero(~np.isin(cells, [*largest, ""]))
    parts = {value: np.flatnonzero(cells == value) for value in largest} | {"other values": rest}
    return parts | unknown, f"{len(known)} different values: the {most - 1} largest are shown, the others together"


def _quartiles(numbers: Array) -> dict[str, Rows]:
    """Rows by quarter of the numbers there are; equal numbers stay together."""
    known = numbers[np.isfinite(numbers)]
    cuts = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    quarter = np.where(np.isfinite(numbers), np.searchsorted(cuts, numbers, side="left"), -1)
    rows = [np.flatnonzero(quarter == part) for part in range(len(cuts) + 1)]
    return {f"{numbers[part].min():g} to {numbers[part].max():g}": part for part in rows if len(part)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

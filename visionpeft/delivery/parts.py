"""What of a run's data is reported and what its decisions are taken on, whatever the task; and other data than its own.

A task brings three things: how its data are read and split, how its model answers a part of them, and what its report
makes of the answers. The rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from visionpeft.errors import AdapterError, ConfigError, DataError
from visionpeft.progress import Progress

if TYPE_CHECKING:
    from pydantic import BaseModel

    from visionpeft.delivery.evaluation import Evaluation
    from visionpeft.training.record import FitResult

NAMES = ("train", "validation", "test")


class Part(Protocol):
    """Labelled things: pictures, scenes, recordings."""

    def __len__(self) -> int:
        """How many."""
        ...

    def subset(self, indices: list[int]) -> Self:
        """Return those of these indices, in that order."""
        ...


Data = TypeVar("Data", bound=Part)
Data_co = TypeVar("Data_co", bound=Part, covariant=True)
Splits_co = TypeVar("Splits_co", covariant=True)
Answers = TypeVar("Answers")
Opened = TypeVar("Opened")
Config = TypeVar("Config", bound="BaseModel")
Answer = Callable[[Data, str], Answers]
"""What a model says of a part; the text names the part where progress is shown."""


class SplitData(Protocol[Data_co]):
    """A set's three parts; validation and test may be empty."""

    @property
    def train(self) -> Data_co:
        """To learn from."""
        ...

    @property
    def validation(self) -> Data_co:
        """To choose on."""
        ...

    @property
    def test(self) -> Data_co:
        """To report."""
        ...


@dataclass(frozen=True)
class Read(Generic[Data, Splits_co, Config]):
    """What an evaluation reads before it loads a base.

    Attributes:
        whole: all data.
        splits: their parts.
        report: what is measured, and how.
    """

    whole: Data
    splits: Splits_co
    report: Config


@dataclass(frozen=True)
class Measured(Generic[Data, Answers]):
    """What a report is of.

    Attributes:
        data: the part that is reported.
        answers: what the model says of it.
        chosen: the same of the validation data, which thresholds are chosen on; None: nothing is chosen.
        part: the name of the reported part.
    """

    data: Data
    answers: Answers
    chosen: Answers | None
    part: str


def measured_run(
    splits: SplitData[Data], answer: Answer[Data, Answers], progress: Progress, things: str = "pictures"
) -> Measured[Data, Answers]:
    """Return what a run that has just ended reports: its test data, or where there are none those of validation.

    Args:
        splits: the run's data.
        answer: asks the model.
        progress: hears of it where there are no test data.
        things: what the data are, for people.

    Raises:
        DataError: there are neither.
    """
    data, part = reported_part(splits, progress, things)
    chosen = _answered(splits.validation, answer, f"validation {things}")
    answers = chosen if chosen is not None and part == "validation" else answer(data, f"{part} {things}")
    return Measured(data, answers, chosen, part)


def reported_part(splits: SplitData[Data], progress: Progress, things: str = "pictures") -> tuple[Data, str]:
    """Return the part that a run reports and its name: test, or where it is empty validation, which is told.

    Raises:
        DataError: both are empty.
    """
    if len(splits.test):
        return splits.test, "test"
    if not len(splits.validation):
        raise DataError(f"there are neither test nor validation {things} to report on: set data.split.")
    progress.say(f"There are no test {things}: the figures are of the validation {things}.")
    return splits.validation, "validation"


def measured_again(
    job: Evaluation, splits: SplitData[Data], whole: Data, answer: Answer[Data, Answers], things: str = "pictures"
) -> Measured[Data, Answers]:
    """Return what an evaluation reports: a part of the data, and validation beside it where decisions are anew.

    Args:
        job: names the part.
        splits: the data.
        whole: all of them, as they were read.
        answer: asks the model.
        things: what the data are, for people.

    Raises:
        DataError: the part is empty.
    """
    data = reported_again(job, splits, whole, things)
    chosen = _answered(splits.validation, answer, f"validation {things}") if job.chooses else None
    return Measured(data, answer(data, f"{job.split} {things}"), chosen, job.part)


def reported_again(job: Evaluation, splits: SplitData[Data], whole: Data, things: str = "pictures") -> Data:
    """Return the part of the data that an evaluation reports.

    Raises:
        DataError: it is empty.
    """
    data = whole if job.split == "all" else getattr(splits, job.split)
    if not len(data):
        raise DataError(f"no {things} are in the split '{job.split}': take another one, --split all for example.")
    return data


def _answered(data: Data, answer: Answer[Data, Answers], label: str) -> Answers | None:
    return answer(data, label) if len(data) else None


def given_parts(whole: Data, splits: Iterable[str | None]) -> tuple[Data, Data, Data]:
    """Return training, validation and test data as they say themselves; what says nothing is tested."""
    given = [split or "test" for split in splits]
    train, validation, test = (
        whole.subset([row for row, split in enumerate(given) if split == name]) for name in NAMES
    )
    return train, validation, test


def make_room(base: Any, result: FitResult, progress: Progress) -> str | None:
    """Make room for the model that is measured, and return where it goes; None: to the best device.

    What is measured is the adapter's file, opened as a user opens it.
    """
    if result.sharding is None:
        base.to("cpu")
        return None
    progress.say("The base is shared out, as one device may be too small for it: the figures are measured on the CPU.")
    return "cpu"


def opened(kind: type[Opened], path: Path, progress: Progress, device: str | None = None) -> Opened:
    """Return the model of an adapter's file, on a device or on the best one.

    Raises:
        AdapterError: it is of another kind.
    """
    from visionpeft.inference.predict import open_model

    model = open_model(path, progress=progress, device=device)
    if not isinstance(model, kind):
        raise AdapterError(f"{path} is a {type(model).__name__.lower()}, not a {kind.__name__.lower()}.")
    return model


def other_data(
    job: Evaluation, kind: type[Config], source_of: Callable[[Path], Mapping[str, str]], known: Mapping[str, Any]
) -> Config:
    """Return settings of other data: those of a YAML file, or a path whose kind tells the format.

    Args:
        job: has the path, and overrides.
        kind: the settings' class.
        source_of: the ``source`` that a path is.
        known: what the adapter tells; the settings' own values come first.

    Raises:
        ConfigError: no data are named, or the settings are wrong.
        DataError: the path is no data.
    """
    from visionpeft.config import validate
    from visionpeft.config.source import Source, apply_overrides, read_source

    path = job.data
    if path is None:
        raise ConfigError("name the data with --data.")
    if path.suffix in (".yaml", ".yml"):
        source = read_source(path, job.of_data)
    else:
        source = apply_overrides(Source("--data", {"source": dict(source_of(path))}), job.of_data)
    return validate(kind, replace(source, values={**known, **source.values}))


def report_settings(job: Evaluation, settings: Any, kind: type[Config]) -> Config:
    """Return what is measured, and how: as the run's settings say, or as the overrides do where there is no run.

    Args:
        job: has the overrides.
        settings: of the run; None where an adapter alone is measured.
        kind: the class of the report's settings.

    Raises:
        ConfigError: an override is wrong.
    """
    from visionpeft.config import validate
    from visionpeft.config.source import Source, apply_overrides

    if settings is not None:
        return settings.report
    source = apply_overrides(Source("overrides", {"report": {}}), job.of_report)
    places = {key[1:]: place for key, place in source.places.items()}
    return validate(kind, replace(source, values=source.values["report"], places=places))

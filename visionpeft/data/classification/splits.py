"""Training, validation and test pictures: as given, or made so that no patient is in two and labels are shared out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from visionpeft.data.classification.labelled import LabelledPictures
from visionpeft.data.classification.leaks import LeakConfig, check_leaks
from visionpeft.data.classification.settings import Settings
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

Counts = np.ndarray[Any, np.dtype[np.int64]]
PARTS = ("train", "validation", "test")


class SplitConfig(Settings):
    """How pictures are split into training, validation and test."""

    use: Literal["auto", "given", "made"] = Field(
        default="auto", description="given: as the source says; made: anew; auto: as given, made where nothing is."
    )
    fractions: tuple[float, float, float] = Field(
        default=(0.7, 0.15, 0.15),
        description="Shares of train, validation and test where they are made. Where validation is not given, its "
        "share is taken of train; 0 takes none.",
    )
    stratify: bool = Field(default=True, description="Share each label out as the fractions say, not only the whole.")
    leaks: LeakConfig = Field(default=LeakConfig(), description="What is done when a picture is in two splits.")

    @field_validator("fractions")
    @classmethod
    def _add_up(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"fractions are three shares that add up to 1, the first above 0, not {list(fractions)}")
        return fractions


@dataclass(frozen=True)
class Splits:
    """Pictures by what they are for; validation and test may be empty."""

    train: LabelledPictures
    validation: LabelledPictures
    test: LabelledPictures

    def parts(self) -> dict[str, LabelledPictures]:
        """Return the splits by name: train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def split_pictures(pictures: LabelledPictures, config: SplitConfig, seed: int, progress: Progress = SILENT) -> Splits:
    """Return the pictures split, checked for leaks.

    Made splits keep each patient in one (a picture without a patient stands for itself) and depend only on the seed
    and on the pictures' names, patients and labels. Each group goes where its labels are missing most, by the divisor
    method of Sainte-Laguë, those with the largest share of rare labels first: with one picture a patient and one label
    a picture, each label is within two pictures of what the fractions say; else it is so approximately.

    Args:
        pictures: all of them.
        config: how to split, and what to do about leaks.
        seed: at least 0.
        progress: where lines go.

    Raises:
        DataError: a picture has no split where others have one; a split that was asked for stays empty; or there are
            leaks and the settings make them an error.
    """
    given = any(example.split for example in pictures.examples)
    if config.use == "given" and not given:
        raise DataError("the source gives no splits (a split column, or train and test folders): set use: made.")
    splits = _given(pictures, config, seed, progress) if given and config.use != "made" else _made(
        pictures, config, seed
    )  # fmt: skip
    for line in _remarks(splits):
        progress.say(line)
    check_leaks(splits.parts(), config.leaks, progress)
    return splits


def folds(pictures: LabelledPictures, count: int, seed: int) -> list[Splits]:
    """Return ``count`` ways to split: each part is the test once, the next one its validation, the rest trains.

    Parts keep patients whole and share labels out as :func:`split_pictures` does; splits that are given are not
    looked at.

    Args:
        pictures: all of them.
        count: of parts, at least 3: one to test on, one to choose on, the rest to train.
        seed: at least 0.

    Raises:
        DataError: count is below 3, or there are fewer patients than parts.
    """
    if count < 3:
        raise DataError(f"{count} folds are too few: one tests, one chooses, the rest trains, so 3 are the least.")
    part = _parts_of(pictures, [1 / count] * count, seed, stratify=True)
    if len(set(part.tolist())) < count:
        raise DataError(f"{count} folds are too many for {len(set(_groups(pictures)))} patients: take fewer.")
    rest = [(part != test) & (part != (test + 1) % count) for test in range(count)]
    return [
        Splits(
            pictures.subset(_where(rest[test])),
            pictures.subset(_where(part == (test + 1) % count)),
            pictures.subset(_where(part == test)),
        )
        for test in range(count)
    ]


def shared_out(groups: Counts, fractions: Sequence[float]) -> Counts:
    """Return for each group the part it goes to, [G], so that each label's pictures follow the fractions.

    A group goes where ``Σ_label (n - wanted)² / wanted``, summed over parts, grows least; for one picture that is the
    part with the smallest (2n + 1) / wanted: the divisor method of Sainte-Laguë.

    Args:
        groups: [G, C], how many pictures of each label (and of any) a group has; taken in this order.
        fractions: of the parts; those with 0 get nothing.
    """
    total = groups.sum(axis=0)
    columns = np.flatnonzero(total)
    used = [part for part, fraction in enumerate(fractions) if fraction > 0]
    wanted = np.array([fractions[part] for part in used])[:, None] * total[columns]
    have = np.zeros_like(wanted)
    found = np.zeros(len(groups), dtype=np.int64)
    for number, added in enumerate(groups[:, columns].astype(np.float64)):
        growth = ((2 * (have - wanted) + added) * added / wanted).sum(axis=1)
        best = int(growth.argmin())
        have[best] += added
        found[number] = used[best]
    return found


def _parts_of(pictures: LabelledPictures, fractions: Sequence[float], seed: int, *, stratify: bool) -> Counts:
    """The part of each picture, [N]."""
    names = _groups(pictures)
    known = sorted(set(names))
    place = {name: number for number, name in enumerate(known)}
    member = np.array([place[name] for name in names], dtype=np.int64)
    labels = pictures.one_hot() if stratify else np.zeros((len(pictures), 0), dtype=np.int64)
    rows = np.concatenate([labels, np.ones((len(pictures), 1), dtype=np.int64)], axis=1)
    counts = np.zeros((len(known), rows.shape[1]), dtype=np.int64)
    np.add.at(counts, member, rows)
    order = np.random.Generator(np.random.PCG64([seed, _STREAM])).permutation(len(known))
    rarity = (counts / np.maximum(counts.sum(axis=0), 1)).sum(axis=1)
    order = order[np.argsort(-rarity[order], kind="stable")]
    part = np.zeros(len(known), dtype=np.int64)
    part[order] = shared_out(counts[order], fractions)
    return part[member]


_STREAM = 0x7370_6C69
"""Sets these draws apart from others that are seeded by the seed."""


def _groups(pictures: LabelledPictures) -> list[tuple[str, str]]:
    """What stays together: the patient, or the picture where that is unknown."""
    return [
        ("patient", example.patient) if example.patient is not None else ("picture", example.name)
        for example in pictures.examples
    ]


def _made(pictures: LabelledPictures, config: SplitConfig, seed: int) -> Splits:
    part = _parts_of(pictures, config.fractions, seed, stratify=config.stratify)
    for number, (name, fraction) in enumerate(zip(PARTS, config.fractions, strict=True)):
        if fraction and not (part == number).any():
            count = len(set(_groups(pictures)))
            raise DataError(f"no picture is left for {name}: {count} patients are too few for a share of {fraction:g}.")
    return _as_splits(pictures, part)


def _given(pictures: LabelledPictures, config: SplitConfig, seed: int, progress: Progress) -> Splits:
    missing = next((example.name for example in pictures.examples if example.split is None), None)
    if missing is not None:
        raise DataError(f"{missing} has no split, and other pictures have one: give it one, or set use: made.")
    part = np.array([PARTS.index(example.split or "") for example in pictures.examples], dtype=np.int64)
    training = np.flatnonzero(part == 0)
    if not len(training):
        raise DataError("no picture is given as train: there is nothing to learn from.")
    share = config.fractions[1] / (config.fractions[0] + config.fractions[1])
    if share and not (part == 1).any():
        inner = _parts_of(pictures.subset(training), (1 - share, share), seed, stratify=config.stratify)
        part[training] = inner
        progress.say(f"no validation pictures are given: {inner.sum()} of {len(training)} training ones are taken.")
    return _as_splits(pictures, part)


def _as_splits(pictures: LabelledPictures, part: Counts) -> Splits:
    return Splits(*(pictures.subset(_where(part == number)) for number in range(3)))


def _where(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    return np.flatnonzero(mask).tolist()


def _remarks(splits: Splits) -> Iterable[str]:
    unknown = [example.patient is None for part in splits.parts().values() for example in part.examples]
    if any(unknown) and not all(unknown):
        yield f"{sum(unknown)} of {len(unknown)} pictures name no patient: each of them is taken for one of its own."
    there = splits.train.one_hot().sum(axis=0)
    for name in ("validation", "test"):
        part = splits.parts()[name]
        both = zip(splits.train.labels, there, part.one_hot().sum(axis=0), strict=True)
        lacking = [label for label, trained, count in both if trained and not count]
        if len(part) and lacking:
            yield f"no picture of {', '.join(lacking)} is in {name}: nothing can be measured for it there."
    absent = [label for label, trained in zip(splits.train.labels, there, strict=True) if not trained]
    if absent:
        yield f"no picture of {', '.join(absent)} is in train: it cannot be learned."

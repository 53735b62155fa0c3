"""What is in two splits: the same patient, the same picture, nearly the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from visionpeft.data.classification.fingerprint import BITS, Fingerprint, correlation
from visionpeft.data.classification.labelled import LabelledPictures
from visionpeft.data.classification.settings import Settings
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

if TYPE_CHECKING:
    from visionpeft.data.classification.splits import Splits

_SHOWN = 10
_ROWS = 1024


class LeakConfig(Settings):
    """What counts as being in two splits, and what is done about it."""

    same: Literal["error", "say"] = Field(default="error", description="One patient, or equal pixels, in two splits.")
    near: Literal["error", "say", "off"] = Field(
        default="say", description="Nearly equal pictures in two splits; many sets have pictures that only look alike."
    )
    bits: int = Field(default=6, ge=0, le=16, description="Near: at most so many of 63 hash bits differ, and …")
    correlation: float = Field(default=0.95, gt=0, le=1, description="… small grey pictures correlate at least so.")


@dataclass(frozen=True)
class Leak:
    """One thing in two splits.

    Attributes:
        kind: "patient", "picture" (equal pixels) or "near" (nearly equal).
        splits: the two splits.
        names: a picture of each.
        patient: whose they are, for kind "patient".
        bits: how many of 63 bits of the perceptual hashes differ, for kind "near".
        correlation: of the two pictures as 32 × 32 grey, for kind "near".
    """

    kind: Literal["patient", "picture", "near"]
    splits: tuple[str, str]
    names: tuple[str, str]
    patient: str | None = None
    bits: int | None = None
    correlation: float | None = None

    def __str__(self) -> str:
        """Return the leak in one line, with the files."""
        where = f"{self.splits[0]} ({self.names[0]}) and in {self.splits[1]} ({self.names[1]})"
        if self.kind == "patient":
            return f"patient {self.patient} is in {where}."
        if self.kind == "picture":
            return f"the same picture is in {where}."
        near = f"{self.bits} of {BITS} bits differ, correlation {self.correlation:.3f}"
        return f"nearly the same picture is in {where}: {near}."


def leaks(
    splits: Splits | Mapping[str, LabelledPictures], config: LeakConfig | None = None, progress: Progress = SILENT
) -> list[Leak]:
    """Return what is in two splits: for each patient, and for each picture of the later split, its nearest one earlier.

    Equal pictures are found by a hash of their decoded pixels; near ones by a perceptual hash of 63 bits, confirmed by
    the correlation of 32 × 32 grey pictures. Every picture is decoded once.

    Args:
        splits: the splits, or pictures by the names of theirs.
        config: what counts as near.
        progress: where the bar of decoding goes.

    Raises:
        DataError: a picture cannot be read.
    """
    config = config or LeakConfig()
    parts = splits if isinstance(splits, Mapping) else splits.parts()
    with progress.phase("Looking for leaks", sum(map(len, parts.values()))) as bar:
        prints: dict[str, list[Fingerprint]] = {name: [] for name in parts}
        for name, part in parts.items():
            for example in part.examples:
                prints[name].append(part.reader.fingerprint(example.name))
                bar.advance()
    found: list[Leak] = []
    for first, second in combinations(parts, 2):
        both = (first, second)
        names = tuple([example.name for example in parts[name].examples] for name in both)
        found += _patients(both, parts[first], parts[second])
        same = _same(both, (names[0], names[1]), (prints[first], prints[second]))
        found += same
        if config.near != "off":
            known = {leak.names[1] for leak in same}
            found += _near(both, (names[0], names[1]), (prints[first], prints[second]), config, known)
    return found


def check_leaks(parts: Mapping[str, LabelledPictures], config: LeakConfig, progress: Progress = SILENT) -> list[Leak]:
    """Return the leaks, told in lines.

    Raises:
        DataError: there are some of a kind that the settings make an error.
    """
    found = leaks(parts, config, progress)
    near = [leak for leak in found if leak.kind == "near"]
    same = [leak for leak in found if leak.kind != "near"]
    for rule, some in ((config.same, same), (config.near, near)):
        lines = [str(leak) for leak in some[:_SHOWN]]
        lines += [f"and {len(some) - _SHOWN} more"] if len(some) > _SHOWN else []
        if some and rule == "error":
            remedy = "Figures would be too good: take them out of one split, or set leaks to say."
            raise DataError("\n".join([*lines, remedy]))
        for line in lines:
            progress.say(line)
    return found


def _patients(splits: tuple[str, str], first: LabelledPictures, second: LabelledPictures) -> Iterator[Leak]:
    earlier = {example.patient: example.name for example in reversed(first.examples) if example.patient is not None}
    later = {example.patient: example.name for example in reversed(second.examples) if example.patient is not None}
    for patient in sorted(earlier.keys() & later.keys(), key=str):
        yield Leak("patient", splits, (earlier[patient], later[patient]), patient)


def _same(
    splits: tuple[str, str], names: tuple[list[str], list[str]], prints: tuple[list[Fingerprint], list[Fingerprint]]
) -> list[Leak]:
    earlier = {print_.pixels: name for name, print_ in zip(reversed(names[0]), reversed(prints[0]), strict=True)}
    pairs = zip(names[1], prints[1], strict=True)
    return [Leak("picture", splits, (earlier[p.pixels], name)) for name, p in pairs if p.pixels in earlier]


def _near(
    splits: tuple[str, str],
    names: tuple[list[str], list[str]],
    prints: tuple[list[Fingerprint], list[Fingerprint]],
    config: LeakConfig,
    known: set[str],
) -> Iterator[Leak]:
    """For each later picture that has no equal one, the nearest earlier one, where it is near enough."""
    if not names[0] or not names[1]:
        return
    earlier = _signs(prints[0])
    for start in range(0, len(names[1]), _ROWS):
        apart = (BITS - _signs(prints[1][start : start + _ROWS]) @ earlier.T) / 2
        for row, column in _candidates(apart, config.bits):
            name = names[1][start + row]
            likeness = [correlation(prints[0][place], prints[1][start + row]) for place in column]
            best = int(np.argmax(likeness))
            if name not in known and likeness[best] >= config.correlation:
                bits = round(float(apart[row, column[best]]))
                yield Leak("near", splits, (names[0][column[best]], name), None, bits, round(likeness[best], 4))


def _signs(prints: Sequence[Fingerprint]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Bits as 1 and -1, [N, 63]: the product of two rows is 63 less twice the bits that differ."""
    return np.where(np.stack([print_.bits for print_ in prints]), np.float32(1), np.float32(-1))


def _candidates(apart: np.ndarray[Any, np.dtype[Any]], most: int) -> Iterator[tuple[int, list[int]]]:
    """Rows with the columns that differ from them in at most ``most`` bits."""
    for row in np.flatnonzero((apart <= most).any(axis=1)).tolist():
        yield row, np.flatnonzero(apart[row] <= most).tolist()

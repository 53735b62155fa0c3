"""Training, validation and test utterances: as the files say, or drawn by a seed, speakers whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visionpeft.data.speech.leaks import check_leaks, speech_leaks
from visionpeft.data.speech.settings import SpeechSplitConfig
from visionpeft.data.speech.utterances import Utterances
from visionpeft.errors import DataError, did_you_mean
from visionpeft.progress import SILENT, Progress

NAMES = ("train", "validation", "test")

_STREAM = 0x7370_6C73
"""Sets this draw apart from others by the same seed."""


@dataclass(frozen=True)
class SpeechSplits:
    """The parts of a set; validation and test may be empty."""

    train: Utterances
    validation: Utterances
    test: Utterances

    def parts(self) -> dict[str, Utterances]:
        """Return the parts by name."""
        return {name: getattr(self, name) for name in NAMES}


def split_speech(
    utterances: Utterances, config: SpeechSplitConfig, seed: int = 0, progress: Progress = SILENT
) -> SpeechSplits:
    """Return the parts of ``utterances``.

    Where files give a split it is kept. A part that they do not give is drawn from the training utterances, or from
    all where there are no splits at all, by ``seed``: whole speakers (values of ``config.by``) until their seconds are
    as near to the share as they come, and at least one. A test part is only drawn where nothing is given.

    Args:
        utterances: at least one.
        config: how, and what may not stand in two parts.
        seed: another seed, another split.
        progress: where lines go.

    Raises:
        DataError: some utterances have a split and some have none; ``config.by`` names no column, or some lack its
            value; there are too few speakers for the parts; or something stands in two parts that may not.
    """
    groups = _groups(utterances, config.by)
    parts = _given(utterances)
    free = not any(item.split for item in utterances.items)
    wanted = [name for name in ("test", "validation") if getattr(config, name) and not parts[name]]
    drawn = [name for name in wanted if free or name == "validation"]
    left = _shuffled(parts["train"], groups, seed)
    if len(left) <= len(drawn):
        raise DataError(_too_few(len(left), drawn, config))
    for name in drawn:
        left, parts[name] = _taken(left, utterances, getattr(config, name), len(drawn) - drawn.index(name))
    parts["train"] = sorted(index for group in left for index in group)
    splits = SpeechSplits(*(utterances.subset(sorted(parts[name])) for name in NAMES))
    _tell(splits, drawn, seed, progress)
    check_leaks(speech_leaks(splits.parts(), config.by, progress), config, progress)
    return splits


def _groups(utterances: Utterances, by: str | None) -> Mapping[int, str]:
    """Whom each utterance belongs to; without a column, each to itself."""
    if by is None:
        return {index: str(index) for index in range(len(utterances))}
    columns = {column for item in utterances.items for column in item.columns}
    if by not in columns:
        raise DataError(f"there is no column '{by}' to split by.{did_you_mean(by, columns)} {_has(columns)}")
    without = [item.name for item in utterances.items if not item.columns.get(by)]
    if without:
        raise DataError(f"{len(without)} utterances have no {by}, {without[0]} for one: write whose they are.")
    return {index: item.columns[by] for index, item in enumerate(utterances.items)}


def _has(columns: set[str]) -> str:
    return f"There are: {', '.join(sorted(columns))}." if columns else "There are no further columns."


def _given(utterances: Utterances) -> dict[str, list[int]]:
    found: dict[str | None, list[int]] = defaultdict(list)
    for index, item in enumerate(utterances.items):
        found[item.split].append(index)
    without = found.pop(None, [])
    if without and found:
        name = utterances.items[without[0]].name
        raise DataError(f"{len(without)} of {len(utterances)} utterances are in no split and the others are: {name}.")
    if not without and not found["train"]:
        raise DataError("no utterance is in the split train: there is nothing to train on.")
    return {name: found[name] for name in NAMES} | ({"train": without} if without else {})


def _shuffled(indices: Sequence[int], groups: Mapping[int, str], seed: int) -> list[list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        members[groups[index]].append(index)
    order = np.random.default_rng([seed, _STREAM]).permutation(len(members))
    names = sorted(members)
    return [members[names[place]] for place in order]


def _taken(
    groups: list[list[int]], utterances: Utterances, share: float, keep: int
) -> tuple[list[list[int]], list[int]]:
    """(the groups that stay, the utterances taken): at least one group, and at least ``keep`` groups stay."""
    wanted = share * sum(utterances.seconds(index) for index in range(len(utterances)))
    stay, taken, total = list[list[int]](), list[int](), 0.0
    for place, group in enumerate(groups):
        seconds = sum(utterances.seconds(index) for index in group)
        rest = len(groups) - place - 1 + len(stay)
        if rest >= keep and (not taken or abs(total + seconds - wanted) < abs(total - wanted)):
            taken, total = taken + group, total + seconds
        else:
            stay.append(group)
    return stay, taken


def _too_few(groups: int, drawn: Sequence[str], config: SpeechSplitConfig) -> str:
    what = f"values of {config.by}" if config.by else "utterances"
    parts = " and ".join(["train", *reversed(drawn)])
    return f"there are {groups} {what} for {parts}: add some, give splits, or set a share to 0."


def _tell(splits: SpeechSplits, drawn: Sequence[str], seed: int, progress: Progress) -> None:
    if not drawn:
        return
    counts = {name: (len(part), sum(map(part.seconds, range(len(part))))) for name, part in splits.parts().items()}
    made = " and ".join(f"{counts[name][0]} {name} ({counts[name][1]:.0f} s)" for name in reversed(drawn))
    left = f"{counts['train'][0]} ({counts['train'][1]:.0f} s) are left to train on"
    progress.say(f"{made} utterances were drawn by seed {seed}; {left}.")

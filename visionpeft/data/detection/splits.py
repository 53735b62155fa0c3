"""Training, validation and test pictures: as the files say, or drawn by a seed; none of them in two."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionpeft.data.detection.scenes import LabelledScenes
from visionpeft.data.detection.settings import ScenesSplit
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

NAMES = ("train", "validation", "test")
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class SceneSplits:
    """The parts of a set; validation and test may be empty.

    Attributes:
        train: to learn from.
        validation: to choose on.
        test: to report.
        faults: of the whole set: ``LabelledScenes.faults``.
    """

    train: LabelledScenes
    validation: LabelledScenes
    test: LabelledScenes
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class SceneLeak:
    """One picture in two splits: equal bytes in the files ``first`` and ``second``."""

    first: str
    first_split: str
    second: str
    second_split: str

    def __str__(self) -> str:
        return f"{self.first} ({self.first_split}) and {self.second} ({self.second_split}) are the same picture"


def split_scenes(scenes: LabelledScenes, config: ScenesSplit, progress: Progress = SILENT) -> SceneSplits:
    """Return the parts of ``scenes``.

    Where files give a split it is kept. A part that they do not give is drawn from the training pictures, or from
    all where there are no splits at all: by ``config.seed``, ``config.validation`` and ``config.test`` as shares of
    all pictures. A test part is only drawn where nothing is given.

    Raises:
        DataError: some pictures have a split and some have none; nothing is left to train on; or one picture is in
            two splits and ``config.leaks`` is "error".
    """
    parts = _given(scenes)
    drawn = [name for name in NAMES[1:] if not parts[name] and (name == "validation" or not parts["test"])]
    if parts["validation"] or parts["test"] or any(scene.split for scene in scenes.scenes):
        drawn = [name for name in drawn if name == "validation"]
    order = np.random.default_rng([config.seed, _STREAM]).permutation(parts["train"]).tolist()
    for name in drawn:
        count = round(getattr(config, name) * len(scenes))
        parts[name], order = sorted(order[:count]), order[count:]
    parts["train"] = sorted(order)
    if not parts["train"]:
        raise DataError(f"of {len(scenes)} pictures none is left to train on: lower the shares, or add pictures")
    splits = SceneSplits(*(scenes.subset(parts[name]) for name in NAMES), faults=scenes.faults)
    _tell(splits, drawn, config, progress)
    return splits


_STREAM = 0x7370_6C69
"""Sets this draw apart from others by the same seed."""


def scene_leaks(splits: SceneSplits) -> list[SceneLeak]:
    """Return pictures that stand in two splits: files of equal bytes, under whatever name."""
    by_size: dict[int, list[tuple[str, str, Path]]] = defaultdict(list)
    for split in NAMES:
        for scene in getattr(splits, split).scenes:
            if scene.path is not None:
                by_size[scene.path.stat().st_size].append((split, scene.name, scene.path))
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for same_size in by_size.values():
        if len({split for split, _, _ in same_size}) > 1:
            for split, name, path in same_size:
                groups[hashlib.sha256(path.read_bytes()).hexdigest()].append((split, name))
    return [
        SceneLeak(name, split, other, other_split)
        for group in groups.values()
        for place, (split, name) in enumerate(group)
        for other_split, other in group[place + 1 :]
        if other_split != split
    ]


def _given(scenes: LabelledScenes) -> dict[str, list[int]]:
    found: dict[str | None, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes.scenes):
        found[scene.split].append(index)
    without = found.pop(None, [])
    if without and found:
        name = scenes.scenes[without[0]].name
        raise DataError(f"{len(without)} pictures are in no split and {len(scenes) - len(without)} are, {name} for one")
    return {name: found[name] for name in NAMES} | ({"train": without} if without else {})


def _tell(splits: SceneSplits, drawn: Sequence[str], config: ScenesSplit, progress: Progress) -> None:
    if drawn:
        made = " and ".join(f"{len(getattr(splits, name))} {name}" for name in drawn)
        progress.say(f"{made} pictures were drawn by seed {config.seed}; {len(splits.train)} are left to train on.")
    for name in NAMES:
        part: LabelledScenes = getattr(splits, name)
        none = [label for label, count in part.counts().items() if not count]
        if len(part) and none:
            progress.say(f"the {name} pictures hold no {', '.join(none)}: nothing is said of that class by them.")
    leaks = scene_leaks(splits)
    if leaks and config.leaks == "error":
        lines = "\n".join(f"  {leak}" for leak in leaks[:_SHOWN])
        raise DataError(
            f"{len(leaks)} pictures stand in two splits, so that figures would be too good:\n{lines}\nTake one of each "
            "away, or set leaks to say."
        )
    for leak in leaks[:_SHOWN]:
        progress.say(f"{leak}: figures will be too good.")

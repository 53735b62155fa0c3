"""What the report of a detector tells besides its figures: facts about the run, given by who made it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from visionpeft.data.detection.splits import NAMES, SceneSplits, scene_leaks
from visionpeft.evaluation.about import ReportAbout


class DetectionAbout(ReportAbout):
    """Facts about the run of a detector.

    Attributes:
        task: "detect".
        pictures: by split.
        counts: objects by split and label.
        faults: boxes that were left out or cut, one sentence each.
    """

    task: str = "detect"
    pictures: dict[str, int] = Field(default={})
    counts: dict[str, dict[str, int]] = Field(default={})
    faults: tuple[str, ...] = ()


def data_facts(splits: SceneSplits) -> dict[str, Any]:
    """Return the fields that tell of the data: "pictures", "counts", "leaks", "leaks_checked", "faults".

    Args:
        splits: the parts; empty ones are left out. Their files are compared once more.
    """
    parts = {name: getattr(splits, name) for name in NAMES if len(getattr(splits, name))}
    return {
        "pictures": {name: len(part) for name, part in parts.items()},
        "counts": {name: part.counts() for name, part in parts.items()},
        "leaks": tuple(str(leak) for leak in scene_leaks(splits)),
        "leaks_checked": True,
        "faults": splits.faults,
    }

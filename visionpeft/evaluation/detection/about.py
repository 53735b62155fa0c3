"""What the report of a detector tells besides its figures: facts about the run, given by who made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from visionpeft.data.detection.splits import NAMES, SceneSplits, scene_leaks


class DetectionAbout(BaseModel):
    """Facts about a run; what is empty is not shown. Its names are those of ``report_data.Outcome`` where both have it.

    Attributes:
        name: of the run.
        task: "detect".
        program: "visionpeft 0.2.0".
        base: {"id", "hash", …} of the base model.
        method: "lora", "probe", "full", ….
        adapter: more of it: {"rank", "targets", …}.
        trainable_parameters: trained numbers, heads included.
        total_parameters: numbers of the model with its adapter.
        adapter_bytes: size of the adapter's file.
        seconds: by phase, in the order in which they happened.
        peak_memory: bytes, 0 where not measured.
        part: which pictures were measured: "test", or "train", "validation" or "all", which the page then warns of.
        pictures: by split.
        counts: objects by split and label.
        leaks: found between splits, one sentence each.
        leaks_checked: whether they were looked for.
        faults: boxes that were left out or cut, one sentence each.
        machine: {"device": …, "cores": …, …}.
        versions: of the packages.
        warnings: one line each.
        settings: the run's, as YAML.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = ""
    task: str = "detect"
    program: str = ""
    base: dict[str, Any] = {}
    method: str = ""
    adapter: dict[str, Any] = {}
    trainable_parameters: int = 0
    total_parameters: int = 0
    adapter_bytes: int = 0
    seconds: dict[str, float] = {}
    peak_memory: int = 0
    pictures: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {}
    leaks: tuple[str, ...] = ()
    leaks_checked: bool = False
    faults: tuple[str, ...] = ()
    part: str = "test"
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    settings: str = ""


def data_facts(splits: SceneSplits, faults: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields that tell of the data: "pictures", "counts", "leaks", "leaks_checked", "faults".

    Args:
        splits: the parts; empty ones are left out. Their files are compared once more.
        faults: of the set that was read: ``LabelledScenes.faults``.
    """
    parts = {name: getattr(splits, name) for name in NAMES if len(getattr(splits, name))}
    return {
        "pictures": {name: len(part) for name, part in parts.items()},
        "counts": {name: part.counts() for name, part in parts.items()},
        "leaks": tuple(str(leak) for leak in scene_leaks(splits)),
        "leaks_checked": True,
        "faults": tuple(faults),
    }

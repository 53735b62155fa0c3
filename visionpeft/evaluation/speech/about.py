"""What the report of a speech model tells besides its figures: facts about the run, given by who made it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class SpeechRunAbout(BaseModel):
    """Facts about a run; what is empty is not shown. Its names are those of ``DetectionAbout`` where both have it.

    Attributes:
        name: of the run.
        task: "transcribe".
        program: "visionpeft 0.2.0".
        base: {"id", "hash", …} of the base model.
        method: "lora", "full", ….
        adapter: more of it: {"rank", "targets", …}.
        trainable_parameters: trained numbers.
        total_parameters: numbers of the model with its adapter.
        adapter_bytes: size of the adapter's file.
        seconds: by phase, in the order in which they happened.
        peak_memory: bytes, 0 where not measured.
        part: which utterances were measured: "test", or "train", "validation" or "all", which the page then warns of.
        utterances: by split.
        hours: of sound, by split.
        leaks: found between splits, one sentence each.
        leaks_checked: whether they were looked for.
        machine: {"device": …, "cores": …, …}.
        versions: of the packages.
        warnings: one line each.
        settings: the run's, as YAML.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = ""
    task: str = "transcribe"
    program: str = ""
    base: dict[str, Any] = {}
    method: str = ""
    adapter: dict[str, Any] = {}
    trainable_parameters: int = 0
    total_parameters: int = 0
    adapter_bytes: int = 0
    seconds: dict[str, float] = {}
    peak_memory: int = 0
    part: str = "test"
    utterances: dict[str, int] = {}
    hours: dict[str, float] = {}
    leaks: tuple[str, ...] = ()
    leaks_checked: bool = False
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    settings: str = ""

"""What a classification report tells of the run besides its figures; the task fills it in."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class RunAbout(BaseModel):
    """Facts about a run; what is empty is not shown. Its names are those of ``report_data.Outcome`` where both have it.

    Attributes:
        name: of the run.
        task: "classify".
        program: "visionpeft 0.2.0".
        base: {"id", "hash", …} of the base model.
        method: "lora", "probe", "full", ….
        adapter: more of it: {"rank", "targets", …}.
        trainable_parameters: trained numbers, heads included.
        total_parameters: numbers of the model with its adapter.
        adapter_bytes: size of the adapter's file.
        seconds: by phase, in the order in which they happened.
        peak_memory: bytes, 0 where not measured.
        steps: made.
        best_step: of the chosen weights.
        part: which pictures were measured: "test", or "train", "validation" or "all", which the page then warns of.
        counts: pictures each class is true of, by split and label.
        pictures: by split.
        patients: by split, where they are known.
        leaks: found between splits, one sentence each.
        leaks_checked: whether they were looked for.
        machine: {"device": …, "cores": …, …}.
        versions: of the packages.
        warnings: one line each.
        settings: the run's, as YAML.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = ""
    task: str = "classify"
    program: str = ""
    base: dict[str, Any] = {}
    method: str = ""
    adapter: dict[str, Any] = {}
    trainable_parameters: int = 0
    total_parameters: int = 0
    adapter_bytes: int = 0
    seconds: dict[str, float] = {}
    peak_memory: int = 0
    steps: int = 0
    best_step: int | None = None
    counts: dict[str, dict[str, int]] = {}
    pictures: dict[str, int] = {}
    patients: dict[str, int] = {}
    leaks: tuple[str, ...] = ()
    leaks_checked: bool = False
    part: str = "test"
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    settings: str = ""

    @property
    def trainable_share(self) -> float | None:
        """Share of the model's numbers that are trained; None where unknown."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else None

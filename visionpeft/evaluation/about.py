"""What a report tells of its run besides the figures, whatever the task; who makes the report fills it in."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class ReportAbout(BaseModel):
    """Facts about a run; what is empty is not shown. Its names are those of ``report_data.Outcome`` where both have it.

    Attributes:
        name: of the run.
        task: "classify", "detect", ….
        program: "visionpeft 0.2.0".
        base: {"id", "hash", …} of the base model.
        method: "lora", "probe", "full", ….
        adapter: more of it: {"rank", "targets", …}.
        trainable_parameters: trained numbers, heads included.
        total_parameters: numbers of the model with its adapter.
        adapter_bytes: size of the adapter's file.
        seconds: by phase, in the order in which they happened.
        peak_memory: bytes, 0 where not measured.
        part: what was measured: "test", or "train", "validation" or "all", which the page then warns of.
        leaks: found between splits, one sentence each.
        leaks_checked: whether they were looked for.
        machine: {"device": …, "cores": …, …}.
        versions: of the packages.
        warnings: one line each.
        settings: the run's, as YAML.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = ""
    task: str = ""
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
    leaks: tuple[str, ...] = ()
    leaks_checked: bool = False
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    settings: str = ""

    @property
    def trainable_share(self) -> float | None:
        """Share of the model's numbers that are trained; None where unknown."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else None

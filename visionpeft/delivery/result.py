"""What a finished run hands over, whatever its task, and what every task tells about the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from visionpeft.training.record import FitResult

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its work.

    Attributes:
        pictures: before, after and the real pictures on one sheet; None where the task or the settings make none.
        adapter: the native adapter file: the best step's where the scores chose one, else the last; None where the run
            was several, one a fold, each with its own.
        exports: format -> file for other programs.
        report: the self-contained page.
        metrics: the scores of that adapter.
    """

    pictures: Path | None
    adapter: Path | None
    exports: Mapping[str, Path]
    report: Path
    metrics: Mapping[str, float]


def chosen_scores(result: FitResult) -> dict[str, float]:
    """Return the scores of the step whose adapter was kept, or of the last evaluation."""
    kept = [line for line in result.history if line["step"] == result.best_step] or list(result.history[-1:])
    return {name: value for line in kept for name, value in line.items() if name != "step"}


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a report tells of the machine: the product and the detail of the device that was used."""
    from visionpeft.compute.devices import devices

    found = next(one for one in devices() if one.name.startswith(device.type))
    return {"device": found.product, "detail": found.detail}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that computed."""
    return {name: version(name) for name in LIBRARIES}

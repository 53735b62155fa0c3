"""What a finished run hands over, whatever its task, and what every task tells about the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft import __version__
from visionpeft.progress import RecordingProgress

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from visionpeft.adapters.archive import Adapter
    from visionpeft.inference.about import About
    from visionpeft.models.speech import SpeechBase
    from visionpeft.models.vision import VisionBase
    from visionpeft.training.record import FitResult

ADAPTER = "adapter.safetensors"
"""The native file in a run's folder."""

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


@dataclass(frozen=True)
class RunFacts:
    """What a report of a vision model tells of the run, whatever its task.

    Attributes:
        folder: of the report; it exists.
        path: of the adapter's file.
        adapter: its value.
        settings: the run's; None where they are not known.
        part: which of the run's pictures are measured; "test" for others too.
    """

    folder: Path
    path: Path
    adapter: Adapter
    settings: BaseModel | None = None
    part: str = "test"


def run_facts(run: RunFacts, base: VisionBase | SpeechBase, progress: RecordingProgress) -> dict[str, Any]:
    """Return the fields that ``RunAbout``, ``DetectionAbout`` and ``SpeechRunAbout`` share."""
    from visionpeft.compute.memory import peak_memory
    from visionpeft.config import dump

    spec = next(iter(run.adapter.specs.values()))
    shape = {name: getattr(spec, name, None) for name in ("rank", "targets", "tokens", "deep")}
    trained = sum(tensor.numel() for tensors in (run.adapter.tensors, run.adapter.heads) for tensor in tensors.values())
    return {
        "name": run.folder.resolve().name,
        "program": f"visionpeft {__version__}",
        "base": {"id": base.id, "hash": base.hash, "family": base.family.name},
        "method": spec.method,
        "adapter": {name: value for name, value in shape.items() if value},
        "trainable_parameters": trained,
        "total_parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "adapter_bytes": run.path.stat().st_size,
        "seconds": {name: round(spent, 2) for name, spent in progress.seconds.items()},
        "peak_memory": peak_memory(base.device),
        "part": run.part,
        "machine": machine(base.device),
        "versions": versions(),
        "warnings": tuple(progress.lines),
        "settings": dump(run.settings) if run.settings is not None else "",
    }


def with_about(adapter: Adapter, about: About) -> Adapter:
    """Return the adapter with what is told of its heads replaced."""
    metadata = adapter.metadata.model_copy(update={"heads": about.model_dump(mode="json")})
    return replace(adapter, metadata=metadata)


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

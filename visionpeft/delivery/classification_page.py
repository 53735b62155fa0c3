"""The report of a classifier: its facts, its figures, and its errors as pictures with what it looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft import __version__
from visionpeft.delivery.result import machine, versions
from visionpeft.errors import BaseModelError
from visionpeft.progress import RecordingProgress

if TYPE_CHECKING:
    from visionpeft.adapters.archive import Adapter
    from visionpeft.config import ClassifyRun
    from visionpeft.data.classification import LabelledPictures, Splits
    from visionpeft.evaluation.classification.about import RunAbout
    from visionpeft.evaluation.classification.mistakes import Mistake
    from visionpeft.evaluation.classification.predictions import Predictions
    from visionpeft.evaluation.classification.report import Shown
    from visionpeft.evaluation.classification.settings import ReportConfig
    from visionpeft.inference.classifier import Classifier


@dataclass(frozen=True)
class Context:
    """What a report is about.

    Attributes:
        folder: where it is written; it exists.
        classifier: the model in use.
        pictures: those reported, in the order of the predictions.
        splits: all pictures.
        config: what is measured.
        path: of the adapter's file.
        adapter: its value.
        settings: the run's; None where they are not known.
        steps: made.
        best_step: of the chosen weights.
        trained: how many numbers are trained.
    """

    folder: Path
    classifier: Classifier
    pictures: LabelledPictures
    splits: Splits
    config: ReportConfig
    path: Path
    adapter: Adapter
    settings: ClassifyRun | None
    steps: int = 0
    best_step: int | None = None
    trained: int = 0


def measured(
    context: Context, reported: Predictions, validation: Predictions | None, progress: RecordingProgress
) -> tuple[Path, dict[str, float]]:
    """Write ``report.html`` and ``metrics.json``, and return the page's path and the figures by name.

    Raises:
        OutputError: a file cannot be written.
        DataError: a subgroup's column is missing.
    """
    from visionpeft.evaluation.classification.report import METRICS, write_classification_report

    with progress.phase("report", 1) as bar:
        page = write_classification_report(
            context.folder, reported, validation, about=about_run(context, progress), config=context.config,
            pictures=lambda mistakes: explained(context, mistakes, progress),
        )  # fmt: skip
        bar.advance()
    return page, json.loads((context.folder / METRICS).read_text(encoding="utf-8"))["after"]


def explained(context: Context, mistakes: Sequence[Mistake], progress: RecordingProgress) -> list[Shown]:
    """Return the pictures of errors as the model saw them, each with what spoke for the class that was wrong."""
    import torch

    from visionpeft.evaluation.classification.explain import grad_cam
    from visionpeft.evaluation.classification.overlay import overlay, seen
    from visionpeft.evaluation.classification.report import Shown

    classifier, preprocessing = context.classifier, context.classifier.about.preprocessing
    pixels = preprocessing.pixels([context.pictures.image(mistake.row) for mistake in mistakes])
    shown = seen(pixels.numpy(), preprocessing.mean, preprocessing.std)
    model = classifier.base.model
    moved = pixels.to(next(model.parameters()).device)
    try:
        classes = torch.tensor([mistake.label for mistake in mistakes])
        maps = grad_cam(model, moved, classes, forward=classifier.logits).cpu().numpy()
    except BaseModelError as reason:
        progress.say(f"Errors are shown without what the model looked at: {reason}")
        return [Shown(picture) for picture in shown]
    return [Shown(picture, overlay(picture, heat)) for picture, heat in zip(shown, maps, strict=True)]


def about_run(context: Context, progress: RecordingProgress) -> RunAbout:
    """Return what the report tells of the run besides its figures."""
    from visionpeft.compute.memory import peak_memory
    from visionpeft.config import dump
    from visionpeft.evaluation.classification.about import RunAbout

    base, settings = context.classifier.base, context.settings
    device = next(base.model.parameters()).device
    spec = next(iter(context.adapter.specs.values()))
    shape = {name: getattr(spec, name) for name in ("rank", "targets", "tokens", "deep") if getattr(spec, name, None)}
    parts = context.splits.parts()
    return RunAbout(
        name=context.folder.resolve().name,
        program=f"visionpeft {__version__}",
        base={"id": base.id, "hash": base.hash, "family": base.family.name},
        method=spec.method,
        adapter=shape,
        trainable_parameters=context.trained or _numbers(context.adapter),
        total_parameters=sum(parameter.numel() for parameter in base.model.parameters()),
        adapter_bytes=context.path.stat().st_size,
        seconds={name: round(spent, 2) for name, spent in progress.seconds.items()},
        peak_memory=peak_memory(device),
        steps=context.steps,
        best_step=context.best_step,
        counts={name: counts(part) for name, part in parts.items()},
        pictures={name: len(part) for name, part in parts.items()},
        patients={name: found for name, part in parts.items() if (found := _patients(part))},
        **_leaks(context, progress),
        machine=machine(device),
        versions=versions(),
        warnings=tuple(progress.lines),
        settings=dump(settings) if settings is not None else "",
    )


def counts(pictures: LabelledPictures) -> dict[str, int]:
    """Return how many pictures each label is true of."""
    return dict(zip(pictures.labels, pictures.one_hot().sum(axis=0).tolist(), strict=True))


def _numbers(adapter: Adapter) -> int:
    return sum(tensor.numel() for tensors in (adapter.tensors, adapter.heads) for tensor in tensors.values())


def _patients(pictures: LabelledPictures) -> int:
    return len({example.patient for example in pictures.examples if example.patient is not None})


def _leaks(context: Context, progress: RecordingProgress) -> dict[str, Any]:
    """What is in two splits, looked for anew: the report says it however it was treated before."""
    from visionpeft.data.classification import leaks

    settings = context.settings
    found = leaks(context.splits, settings.data.split.leaks if settings is not None else None, progress)
    return {"leaks": tuple(map(str, found)), "leaks_checked": True}

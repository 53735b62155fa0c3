"""The report of a classifier: its facts, its figures, and its errors as pictures with what it looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from visionpeft.delivery.result import RunFacts, run_facts
from visionpeft.errors import BaseModelError
from visionpeft.progress import RecordingProgress

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from visionpeft.data.classification import LabelledPictures, Leak, Splits
    from visionpeft.data.classification.leaks import LeakConfig
    from visionpeft.evaluation.classification.about import RunAbout
    from visionpeft.evaluation.classification.mistakes import Mistake
    from visionpeft.evaluation.classification.operating import Held
    from visionpeft.evaluation.classification.predictions import Predictions
    from visionpeft.evaluation.classification.report import Shown
    from visionpeft.evaluation.classification.settings import ReportConfig
    from visionpeft.inference.classifier import Classifier


@dataclass(frozen=True)
class Context:
    """What a report is about.

    Attributes:
        run: what every task tells.
        classifier: the model in use.
        pictures: those reported, in the order of the predictions.
        splits: all pictures.
        config: what is measured.
        rules: what counts as being in two splits.
        steps: made.
        best_step: of the chosen weights.
        held: what the adapter holds of its training's validation, taken where nothing is chosen.
    """

    run: RunFacts
    classifier: Classifier
    pictures: LabelledPictures
    splits: Splits
    config: ReportConfig
    rules: LeakConfig | None = None
    steps: int = 0
    best_step: int | None = None
    held: Held | None = None


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
            context.run.folder, reported, validation, about=about_run(context, progress), config=context.config,
            pictures=lambda mistakes: explained(context, mistakes, progress), held=context.held,
        )  # fmt: skip
        bar.advance()
    return page, json.loads((context.run.folder / METRICS).read_text(encoding="utf-8"))["after"]


def explained(context: Context, mistakes: Sequence[Mistake], progress: RecordingProgress) -> list[Shown]:
    """Return the pictures of errors as the model saw them, each with the maps that the report's settings ask for."""
    import torch

    from visionpeft.evaluation.classification.explain import attention_rollout, grad_cam
    from visionpeft.evaluation.classification.overlay import seen
    from visionpeft.evaluation.classification.report import Shown

    classifier, preprocessing = context.classifier, context.classifier.about.preprocessing
    pixels = preprocessing.pixels([context.pictures.image(mistake.row) for mistake in mistakes])
    shown = seen(pixels.numpy(), preprocessing.mean, preprocessing.std)
    model, asked = classifier.base.model, context.config.explain
    moved = pixels.to(next(model.parameters()).device)
    classes = torch.tensor([mistake.label for mistake in mistakes])
    heat = flow = [None] * len(shown)
    if asked in ("grad-cam", "both"):
        heat = _laid(shown, lambda: grad_cam(model, moved, classes, forward=classifier.logits), progress)
    if asked in ("rollout", "both"):
        flow = _laid(shown, lambda: _above_least(attention_rollout(model, moved, forward=classifier.logits)), progress)
    return [Shown(*parts) for parts in zip(shown, heat, flow, strict=True)]


def _above_least(maps: Tensor) -> Tensor:
    """Maps [N, h, w] from their least place on: something of every place arrives."""
    return maps - maps.amin(dim=(1, 2), keepdim=True)


def _laid(pictures: Sequence[Image], maps: Callable[[], Tensor], progress: RecordingProgress) -> Sequence[Image | None]:
    """Maps laid over their pictures; none, and a line that says why, where the model cannot be explained so."""
    from visionpeft.evaluation.classification.overlay import overlay

    try:
        found = maps().cpu().numpy()
    except BaseModelError as reason:
        progress.say(f"Errors are shown without what the model looked at: {reason}")
        return [None] * len(pictures)
    return [overlay(picture, one) for picture, one in zip(pictures, found, strict=True)]


def about_run(context: Context, progress: RecordingProgress) -> RunAbout:
    """Return what the report tells of the run besides its figures."""
    from visionpeft.evaluation.classification.about import RunAbout

    parts = context.splits.parts()
    leaks = leaks_of(context, progress)
    return RunAbout(
        **run_facts(context.run, context.classifier.base, progress),
        steps=context.steps,
        best_step=context.best_step,
        counts={name: counts(part) for name, part in parts.items()},
        pictures={name: len(part) for name, part in parts.items()},
        patients={name: found for name, part in parts.items() if (found := _patients(part))},
        leaks=tuple(map(str, leaks)),
        leaks_checked=True,
    )


def counts(pictures: LabelledPictures) -> dict[str, int]:
    """Return how many pictures each label is true of."""
    return dict(zip(pictures.labels, pictures.one_hot().sum(axis=0).tolist(), strict=True))


def _patients(pictures: LabelledPictures) -> int:
    return len({example.patient for example in pictures.examples if example.patient is not None})


def leaks_of(context: Context, progress: RecordingProgress) -> list[Leak]:
    """Return what is in two splits, looked for anew: the report says it however it was treated before."""
    from visionpeft.data.classification import leaks

    return leaks(context.splits, context.rules, progress)

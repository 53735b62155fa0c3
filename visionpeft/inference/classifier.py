"""A classifier in use: pictures in, logits and answers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from visionpeft.data.ahead import in_batches
from visionpeft.data.classification.labelled import LabelledPictures
from visionpeft.evaluation.classification.predictions import POSITIVE, Predictions
from visionpeft.inference.about import ClassifierAbout
from visionpeft.inference.annotate import captioned
from visionpeft.inference.model import Options, check_options
from visionpeft.inference.ordinal import ordinal_logits
from visionpeft.models.masks import attend_unmasked
from visionpeft.models.vision import VisionBase, class_logits
from visionpeft.progress import SILENT, Progress


@dataclass(frozen=True)
class Answer:
    """What a classifier says of one picture.

    Attributes:
        labels: the answer: one label; of multilabel pictures those from their thresholds on, maybe none.
        probabilities: label -> probability, calibrated where a temperature was fitted.
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"labels": list(self.labels), "probabilities": self.probabilities}

    def as_rows(self) -> list[dict[str, str | float]]:
        """Return it as one row of a table."""
        return [{"label": "|".join(self.labels), **{f"p({name})": p for name, p in self.probabilities.items()}}]

    def as_words(self) -> list[str]:
        """Return the labels with their probabilities in per cent."""
        return [f"{label} {self.probabilities[label]:.1%}" for label in self.labels]

    def drawn(self, image: Image.Image) -> Image.Image:
        """Return the picture with the answer below it."""
        return captioned(image, ", ".join(self.as_words()) or "none")


@dataclass
class Classifier:
    """A base with an active adapter and its head.

    Attributes:
        base: the model.
        about: labels, preprocessing, thresholds.
        merge: merges the adapter into the weights for good; None where that is done by someone else.
    """

    base: VisionBase
    about: ClassifierAbout
    merge: Callable[[], None] | None = None

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits [N, C] of pixels [N, 3, H, W]; those of an ordinal head are the classes' log shares."""
        found = class_logits(self.base, pixels)
        return ordinal_logits(found) if self.about.kind == "ordinal" else found

    @torch.no_grad()
    def logits_of(self, images: Sequence[Image.Image], *, tta: bool = False) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the logits [N, C] of pictures, float64.

        Args:
            images: RGB.
            tta: the mean over each picture and its mirror image.
        """
        found = self._seen(images)
        if tta:
            found = (found + self._seen([ImageOps.mirror(image) for image in images])) / 2
        return found

    def _seen(self, images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.float64]]:
        device = next(self.base.model.parameters()).device
        pixels = self.about.preprocessing.pixels(images).to(device)
        return self.logits(pixels).double().cpu().numpy()

    def predictions(
        self,
        pictures: LabelledPictures,
        *,
        batch_size: int = 64,
        tta: bool = False,
        label: str = "predicting",
        progress: Progress = SILENT,
    ) -> Predictions:
        """Return what it says of labelled pictures beside what is true of them.

        Args:
            pictures: with the classifier's labels.
            batch_size: pictures at a time.
            tta: see ``logits_of``.
            label: of the progress bar.
            progress: where it is shown.

        Raises:
            DataError: a picture cannot be read.
        """
        found: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        with progress.phase(label, len(pictures)) as bar:
            for images in in_batches(pictures.image, len(pictures), batch_size):
                found.append(self.logits_of(images, tta=tta))
                bar.advance(len(images))
        return Predictions(
            names=tuple(example.name for example in pictures.examples),
            logits=np.concatenate(found),
            targets=pictures.targets(),
            labels=pictures.labels,
            kind=pictures.kind,
            columns=columns_of(pictures),
        )

    def say(self, images: Sequence[Image.Image], options: Options) -> list[Answer]:
        """Return the answer to each picture.

        Raises:
            ConfigError: see ``check_options``.
        """
        check_options(self.about, options)
        return self.answers(self.logits_of(images, tta=options.tta), options.threshold)

    def exported(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a module of pixels [N, 3, H, W] -> logits [N, C], and the name of its output."""
        self.base.to("cpu", torch.float32)
        if self.merge is not None:
            self.merge()
        attend_unmasked(self.base.model)
        return LogitsModule(self).eval(), ("logits",)

    def answers(self, logits: np.ndarray[Any, np.dtype[np.float64]], threshold: float | None = None) -> list[Answer]:
        """Return the answers that logits [N, C] mean, by temperature and thresholds, or by one for all."""
        targets = np.zeros(logits.shape if self.about.kind == "multilabel" else len(logits), dtype=np.int64)
        names = tuple(str(row) for row in range(len(logits)))
        raw = Predictions(names, logits, targets, self.about.labels, self.about.kind)
        calibrated = Predictions(names, logits / self.about.temperature, targets, self.about.labels, self.about.kind)
        return [
            Answer(self._decided(plain, threshold), dict(zip(self.about.labels, map(float, shown), strict=True)))
            for plain, shown in zip(raw.probabilities, calibrated.probabilities, strict=True)
        ]

    def _decided(
        self, probabilities: np.ndarray[Any, np.dtype[np.float64]], threshold: float | None
    ) -> tuple[str, ...]:
        """Thresholds were chosen on probabilities as the model gives them, before any temperature."""
        labels = self.about.labels
        thresholds = self.about.thresholds if threshold is None else dict.fromkeys(labels, threshold)
        if self.about.kind == "multilabel":
            pairs = zip(labels, probabilities, strict=True)
            return tuple(label for label, probability in pairs if probability >= thresholds.get(label, 0.5))
        if self.about.kind == "binary":
            yes = probabilities[POSITIVE] >= thresholds.get(labels[POSITIVE], 0.5)
            return (labels[POSITIVE if yes else 1 - POSITIVE],)
        return (labels[int(probabilities.argmax())],)


class LogitsModule(nn.Module):
    """A classifier as a module of pixels [N, 3, H, W] -> logits [N, C], for other runtimes."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.base.model
        self._classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        return self._classifier.logits(pixels)


def columns_of(pictures: LabelledPictures) -> dict[str, tuple[str, ...]]:
    """Return what else is known of pictures, by column; "" where unknown; the patient is a column too."""
    names = dict.fromkeys(name for example in pictures.examples for name in example.columns)
    columns = {name: tuple(example.columns.get(name, "") for example in pictures.examples) for name in names}
    if any(example.patient is not None for example in pictures.examples):
        columns["patient"] = tuple(example.patient or "" for example in pictures.examples)
    return columns

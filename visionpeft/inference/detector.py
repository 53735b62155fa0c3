"""A detector in use: pictures in, boxes with their labels and scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visionpeft.data.ahead import in_batches
from visionpeft.data.detection.scenes import LabelledScenes
from visionpeft.evaluation.detection.detections import Detections, Evaluation, evaluation_of
from visionpeft.inference.about import DetectorAbout
from visionpeft.inference.annotate import Mark, boxed
from visionpeft.inference.detect import TileConfig, ViewConfig, in_tiles, in_views
from visionpeft.inference.model import Options
from visionpeft.models.detection import detector_output, detector_scores
from visionpeft.models.vision import VisionBase
from visionpeft.progress import SILENT, Progress

MOST = 100
"""Detections of a picture, as COCO counts them."""

_OVERLAP = 0.2  # of a tile's side that neighbouring tiles share


@dataclass(frozen=True)
class Sighting:
    """What a detector says of one picture.

    Attributes:
        found: from the threshold on, highest score first, in the picture's pixels.
        labels: names of the classes.
    """

    found: Detections
    labels: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"detections": [{"label": name, "score": score, "box": box} for name, score, box in self._each()]}

    def as_rows(self) -> list[dict[str, str | float]]:
        """Return it as one row of a table for each detection."""
        corners = ("x_min", "y_min", "x_max", "y_max")
        return [
            {"label": name, "score": score, **dict(zip(corners, box, strict=True))} for name, score, box in self._each()
        ]

    def as_words(self) -> list[str]:
        """Return each label with its score."""
        return [f"{name} {score:.2f}" for name, score, _ in self._each()]

    def drawn(self, image: Image.Image) -> Image.Image:
        """Return the picture with boxes, labels and scores on it."""
        places = {name: place for place, name in enumerate(self.labels)}
        marks = [
            Mark((box[0], box[1], box[2], box[3]), f"{name} {score:.2f}", places[name])
            for name, score, box in self._each()
        ]
        return boxed(image, marks)

    def _each(self) -> list[tuple[str, float, list[float]]]:
        rows = zip(self.found.labels.tolist(), self.found.scores.tolist(), self.found.boxes.tolist(), strict=True)
        return [(self.labels[label], round(score, 4), [round(side, 2) for side in box]) for label, score, box in rows]


@dataclass
class Detector:
    """A base with an active adapter and its heads.

    Attributes:
        base: the model.
        about: labels, preprocessing, threshold.
        merge: merges the adapter into the weights for good; None where that is done by someone else.
    """

    base: VisionBase
    about: DetectorAbout
    merge: Callable[[], None] | None = None

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Return up to 100 detections of each picture (RGB) whatever their score, highest first, in its pixels."""
        preprocessing = self.about.preprocessing
        out = detector_output(self.base, preprocessing.pixels(images), preprocessing.masks(images))
        scores = detector_scores(self.base, out.logits).cpu()
        boxes = out.boxes.float().cpu().double().numpy()
        return [self._of_one(str(number), image, scores[number], boxes[number]) for number, image in enumerate(images)]

    def _of_one(
        self, name: str, image: Image.Image, scores: Tensor, boxes: np.ndarray[Any, np.dtype[np.float64]]
    ) -> Detections:
        """One picture: scores [Q, C], boxes [Q, 4] as centre and size in shares of the pixels or of the picture."""
        queries, classes, best = _best(scores, one_a_query=self.base.sight.background)
        height, width = self.about.preprocessing.size
        place = self.about.preprocessing.placement(*image.size)
        if self.base.sight.masked:
            width, height = image.width * place.scale[0], image.height * place.scale[1]
        x, y, w, h = (boxes[queries] * (width, height, width, height)).T
        corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
        corners = (corners - (*place.offset, *place.offset)) / (*place.scale, *place.scale)
        limits = (*image.size, *image.size)
        return Detections(name, corners.clip(0, limits).astype(np.float32), best, classes)

    def evaluation(
        self,
        scenes: LabelledScenes,
        *,
        batch_size: int = 16,
        tta: bool = False,
        label: str = "detecting",
        progress: Progress = SILENT,
    ) -> Evaluation:
        """Return what it finds on pictures beside what is there.

        Args:
            scenes: with the detector's labels.
            batch_size: pictures at a time.
            tta: whether each picture is also seen mirrored.
            label: of the progress bar.
            progress: where it is shown.

        Raises:
            DataError: a picture cannot be read.
        """
        look = in_views(self.detect, ViewConfig()) if tta else self.detect
        found: list[Detections] = []
        with progress.phase(label, len(scenes)) as bar:
            for images in in_batches(scenes.image, len(scenes), batch_size):
                found += look(images)
                bar.advance(len(images))
        named = [one.named(scene.name) for one, scene in zip(found, scenes.scenes, strict=True)]
        return evaluation_of(scenes.labels, scenes.scenes, named)

    def say(self, images: Sequence[Image.Image], options: Options) -> list[Sighting]:
        """Return what is on each picture, from the threshold on."""
        look = in_views(self.detect, ViewConfig()) if options.tta else self.detect
        if options.tile is not None:
            look = in_tiles(look, TileConfig(size=options.tile, overlap=max(1, round(options.tile * _OVERLAP))))
        threshold = self.about.threshold if options.threshold is None else options.threshold
        return [Sighting(found.above(threshold), self.about.labels) for found in look(images)]

    def exported(self) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a module of pixels [N, 3, H, W] -> scores [N, Q, C] and boxes [N, Q, 4], and their names."""
        self.base.to("cpu", torch.float32)
        if self.merge is not None:
            self.merge()
        return ScoresModule(self.base).eval(), ("scores", "boxes")


class ScoresModule(nn.Module):
    """A detector as a module of pixels, for other runtimes.

    It returns scores [N, Q, C] in [0, 1] and boxes [N, Q, 4], centre and size as shares of the pixels' sides.
    """

    def __init__(self, base: VisionBase) -> None:
        super().__init__()
        self.model = base.model
        self._base = base

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and boxes."""
        out = detector_output(self._base, pixels)
        return detector_scores(self._base, out.logits), out.boxes


def _best(
    scores: Tensor, *, one_a_query: bool
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Queries, classes and scores of the best detections of scores [Q, C], highest first.

    Where classes exclude each other a query is one detection, of its likeliest class; otherwise one of each class.
    """
    if one_a_query:
        best, classes = scores.max(dim=1)
        order = best.argsort(descending=True, stable=True)[:MOST]
        return order.numpy(), classes[order].numpy(), best[order].numpy()
    best, places = scores.flatten().topk(min(MOST, scores.numel()))
    return (places // scores.shape[1]).numpy(), (places % scores.shape[1]).numpy(), best.numpy()

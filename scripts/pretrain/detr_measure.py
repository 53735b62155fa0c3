"""How well boxes are found: average precision as COCO defines it, and a sheet of pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import PreTrainedModel

from scripts.pretrain.detr_model import normalize
from scripts.pretrain.detr_scenes import SIDE, Scenes
from visionpeft.models.matching import overlaps, to_corners

KEPT = 100
"""Detections of a picture that count, the best ones; COCO takes as many."""

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@torch.no_grad()
def detect(model: PreTrainedModel, pictures: Tensor, batch: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """The best detections in uint8 pictures, on the CPU.

    Returns:
        Scores (pictures, KEPT) in falling order, labels of the same shape, and corners (pictures, KEPT, 4) in pixels.
    """
    parts = []
    for some in pictures.split(batch):
        found = model(normalize(some.to(model.device).float() / 255))
        scores, index = found.logits.sigmoid().flatten(1).topk(KEPT, dim=1)
        classes = found.logits.shape[-1]
        query = (index // classes)[..., None].expand(-1, -1, 4)
        corners = to_corners(found.pred_boxes.float().gather(1, query)) * SIDE
        parts.append((scores.float().cpu(), (index % classes).cpu(), corners.cpu()))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def average_precision(
    found: tuple[Tensor, Tensor, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor], one_class: bool = False
) -> dict[str, float]:
    """COCO's mAP (mean over IoU thresholds 0.5 to 0.95) and mAP50, over the classes that there are.

    Args:
        found: what :func:`detect` returns.
        boxes: true corners in pixels of each picture, (things, 4).
        labels: their classes, (things,).
        one_class: whether classes are left aside, so that only boxes count.
    """
    scores, classes, corners = found
    if one_class:
        classes, labels = torch.zeros_like(classes), [torch.zeros_like(label) for label in labels]
    rows = [_hits(*picture) for picture in zip(scores, classes, corners, boxes, labels, strict=True)]
    scores, classes, hits = (np.concatenate(column) for column in zip(*rows, strict=True))
    truth = np.concatenate([label.numpy() for label in labels])
    each = np.array([_area(scores[classes == c], hits[classes == c], (truth == c).sum()) for c in np.unique(truth)])
    return {"mAP": float(each.mean()), "mAP50": float(each[:, 0].mean())}


def _hits(
    scores: Tensor, classes: Tensor, corners: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture's detections and at which thresholds each is a hit, bool (detections, thresholds).

    Detections, best first, take the free thing of their class that they overlap most.
    """
    share = overlaps(corners[:, None], boxes[None])[0].numpy() if len(boxes) else np.zeros((len(scores), 0))
    share = np.where(classes.numpy()[:, None] == labels.numpy()[None], share, -1)
    hits = np.zeros((len(scores), len(THRESHOLDS)), bool)
    for column, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(boxes), bool)
        for row in np.flatnonzero((share >= threshold).any(1)):
            open_to = np.where(free, share[row], -1)
            thing = int(open_to.argmax())
            if open_to[thing] >= threshold:
                hits[row, column], free[thing] = True, False
    return scores.numpy(), classes.numpy(), hits


def _area(scores: np.ndarray, hits: np.ndarray, things: int) -> np.ndarray:
    """The mean of the highest precision at or beyond 101 recalls, for each threshold."""
    hits = hits[np.argsort(-scores, kind="stable")]
    right = hits.cumsum(0)
    precision = right / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    # Recalls that are never reached have precision zero.
    precision = np.concatenate([precision, np.zeros((1, len(THRESHOLDS)))])
    first = [np.searchsorted(column, RECALLS) for column in (right / things).T]
    return np.array([precision[rows, column].mean() for column, rows in enumerate(first)])


def true_boxes(scenes: Scenes) -> tuple[list[Tensor], list[Tensor]]:
    """The corners in pixels and the classes of each scene's things, on the CPU."""
    corners, labels = (to_corners(scenes.boxes) * SIDE).cpu(), scenes.labels.cpu()
    return [c[k >= 0] for c, k in zip(corners, labels, strict=True)], [k[k >= 0] for k in labels]


def figures(model: PreTrainedModel, scenes: Scenes) -> dict[str, float]:
    """Return mAP and mAP50 on scenes, with classes and of boxes alone."""
    found, truth = detect(model, scenes.pictures), true_boxes(scenes)
    boxes_alone = average_precision(found, *truth, one_class=True)
    return average_precision(found, *truth) | {f"{name}_boxes": value for name, value in boxes_alone.items()}


def sheet(model: PreTrainedModel, scenes: Scenes, classes: Sequence[str], threshold: float = 0.4) -> Image.Image:
    """The scenes in rows of five with what is found in them."""
    page = Image.new("RGB", (5 * SIDE, -(-len(scenes) // 5) * SIDE))
    for index, (scores, labels, corners) in enumerate(zip(*detect(model, scenes.pictures), strict=True)):
        picture = Image.fromarray(scenes.pictures[index].permute(1, 2, 0).cpu().numpy())
        draw = ImageDraw.Draw(picture)
        for score, label, box in zip(scores.tolist(), labels.tolist(), corners.tolist(), strict=True):
            if score >= threshold:
                draw.rectangle(box, outline="red")
                place, words = (box[0] + 2, box[1] + 1), f"{classes[label]} {score:.2f}"
                draw.text(place, words, "red", stroke_width=1, stroke_fill="white", font_size=9)
        page.paste(picture, (index % 5 * SIDE, index // 5 * SIDE))
    return page

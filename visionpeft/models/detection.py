"""What a detector says, and its loss as a sum and a count: transformers' own, or RT-DETR's on the device alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionpeft.models.matching import Targets
from visionpeft.models.rt_detr import rt_detr_loss, trains_on_the_device
from visionpeft.models.vision import VisionBase


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector predicts.

    Attributes:
        logits: [N, Q, C], or [N, Q, C + 1] where the last one means "nothing there" (DETR, YOLOS).
        boxes: [N, Q, 4], (centre x, centre y, width, height) as shares of the pixels' width and height, or of the
            picture's without its padding (`Sight.masked`).
    """

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class DetectionLoss:
    """A loss as a sum over boxes and their count, scalars on the device.

    Attributes:
        loss_sum: transformers' loss times `count`.
        count: the number of boxes in the targets; over several processes the mean of their numbers, by which
            transformers divides.
        parts: the terms as transformers names them, divided by the number of boxes as it does.
    """

    loss_sum: Tensor
    count: Tensor
    parts: dict[str, Tensor]


def detector_output(base: VisionBase, pixels: Tensor, mask: Tensor | None = None) -> DetectorOutput:
    """Run a detector.

    Args:
        base: the detector.
        pixels: [N, 3, H, W], normalised.
        mask: [N, H, W], 1 where there is picture and 0 where there is padding; ignored by detectors that know none.
    """
    out = base.model(**_inputs(base, pixels, mask))
    return DetectorOutput(out.logits, out.pred_boxes)


_ANOTHER_NETWORK = ("detr", "conditional_detr")
"""Where transformers (5.23) normalises every decoder layer's output for the next one when it gives auxiliary losses: a
network that the weights were not trained for, and that computes something else in use."""


def train_all_layers(base: VisionBase, wanted: bool) -> bool:
    """Let the loss count the answers of all decoder layers (auxiliary losses), or of the last alone.

    The papers of the DETR family count all; published configurations of Deformable DETR say otherwise, as transformers
    leaves it out by default. A detector without a decoder (YOLOS) has one answer.

    Returns:
        Whether it is as wanted: DETR and Conditional DETR learn by the last layer always.
    """
    config: Any = base.model.config
    if not hasattr(config, "decoder_layers"):
        return True
    config.auxiliary_loss = wanted and config.model_type not in _ANOTHER_NETWORK
    return config.auxiliary_loss == wanted


def detector_scores(base: VisionBase, logits: Tensor) -> Tensor:
    """Return the probability of each class at each query, [N, Q, C]: softmax without "nothing there", or sigmoid."""
    return logits.float().softmax(-1)[..., :-1] if base.sight.background else logits.float().sigmoid()


def detection_loss(
    base: VisionBase, pixels: Tensor, mask: Tensor | None, targets: Sequence[Mapping[str, Tensor]]
) -> DetectionLoss:
    """Return the loss of the detector's own paper as transformers computes it, in training mode.

    Boxes, and classes where they are independent, are summed and divided by the number of boxes, so loss times count
    is a sum over boxes that adds up over micro-batches. DETR's and YOLOS' cross entropy is a weighted mean over
    queries instead; it enters as that mean, over all processes, times the count. The matching is solved by scipy: it
    waits for the device and moves the costs to the CPU once for every decoder layer, so a step with it cannot be
    recorded.

    Args:
        base: the detector, in training mode: RT-DETR's denoising and RF-DETR's groups are there in training only.
        pixels: [N, 3, H, W], normalised.
        mask: [N, H, W] or None, as in `detector_output`.
        targets: for each picture `class_labels`, [n] int64, and `boxes`, [n, 4], (centre x, centre y, width, height)
            as shares of what the detector gives them of (`DetectorOutput.boxes`); n may be 0.
    """
    labels = [{name: target[name].to(base.device) for name in ("class_labels", "boxes")} for target in targets]
    with _as_many_labels_as_its_head(base):
        out = base.model(**_inputs(base, pixels, mask), labels=labels)
    parts = {name: part.detach() for name, part in out.loss_dict.items()}
    mine = float(sum(len(target["boxes"]) for target in targets))
    if not base.sight.background:
        boxes = _means([mine], base.device)[0]
        return DetectionLoss(out.loss * _divisor(base, mine, boxes), boxes, parts)
    weight = _weight(targets, out.logits.shape[1], base.model.config)
    boxes, mean_weight = _means([mine, weight], base.device)
    entropy = torch.stack([part for name, part in out.loss_dict.items() if name.startswith("loss_ce")]).sum()
    rest = (out.loss - entropy) * _divisor(base, mine, boxes)
    return DetectionLoss(rest + entropy * weight / mean_weight * boxes.clamp(min=1), boxes, parts)


def recordable(base: VisionBase) -> bool:
    """Return whether the detector's loss can be computed by ``device_loss``, which never waits for the device."""
    return trains_on_the_device(base.model)


def device_loss(
    base: VisionBase, pixels: Tensor, targets: Targets, uniform: Callable[[tuple[int, ...]], Tensor]
) -> DetectionLoss:
    """Return the loss of RT-DETR's paper, all layers and denoising queries in one sum, with nothing asked of the host.

    Args:
        base: the detector, in training mode.
        pixels: [N, 3, H, W], normalised.
        targets: padded, boxes as shares of the pixels' sides.
        uniform: random numbers in [0, 1) for each picture, [N, *shape].

    Returns:
        The sum over things, their number, and the terms of the matched queries as means over layers and things.
    """
    matched, denoised, weights = rt_detr_loss(base.model, pixels, targets, uniform)
    count = (targets.labels >= 0).sum().float()
    config: Any = base.model.config
    answers = count.clamp(min=1) * (config.decoder_layers + 1)
    named = {"loss_vfl": matched.classes, "loss_bbox": matched.distance, "loss_giou": matched.overlap}
    parts = {name: part.detach() / answers for name, part in named.items()}
    return DetectionLoss(matched.weighted(weights) + denoised.weighted(weights), count, parts)


def _inputs(base: VisionBase, pixels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    inputs = {"pixel_values": pixels.to(base.device, base.dtype)}
    knows_masks = "pixel_mask" in inspect.signature(base.model.forward).parameters
    return inputs | ({"pixel_mask": mask.to(base.device)} if mask is not None and knows_masks else {})


_OWN, _MEAN = ("rt_detr", "rt_detr_v2", "d_fine"), ("rf_detr",)
"""Whose losses in transformers (5.23) divide by the boxes of their own process, and by the mean over processes. The
others take the mean for a sum, and divide it by the number of processes once more."""


def _divisor(base: VisionBase, mine: float, mean: Tensor) -> Tensor:
    """What transformers has divided the terms of boxes by, given the boxes of this process and the mean over all."""
    world = torch.distributed.get_world_size() if _several() else 1
    config: Any = base.model.config
    if config.model_type in _OWN:
        return torch.full_like(mean, max(mine, 1.0))
    return (mean if config.model_type in _MEAN else mean / world).clamp(min=1)


def _weight(targets: Sequence[Mapping[str, Tensor]], queries: int, config: Any) -> float:
    """What DETR's cross entropy of these pictures is divided by: 1 a query with a thing, less a query with nothing."""
    matched = sum(min(len(target["boxes"]), queries) for target in targets)
    return matched + (len(targets) * queries - matched) * float(config.eos_coefficient)


def _means(values: Sequence[float], device: torch.device) -> Tensor:
    """The means over all processes."""
    found = torch.tensor(values, dtype=torch.float, device=device)
    if _several():
        torch.distributed.all_reduce(found)
        found = found / torch.distributed.get_world_size()
    return found


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def _as_many_labels_as_its_head(base: VisionBase) -> Generator[None]:
    """Let the configuration name as many labels as the head now has; transformers' losses go by the configuration."""
    config: Any = base.model.config
    kept = config.id2label, config.label2id
    width = getattr(config, "d_model", None) or config.hidden_size
    head = base.model.get_submodule([path for path in base.sight.heads(base.model) if "denoising" not in path][-1])
    with torch.no_grad():
        labels = head(torch.zeros(1, width, device=base.device, dtype=base.dtype)).shape[-1] - base.sight.background
    names = [str(place) for place in range(labels)]
    config.id2label, config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    try:
        yield
    finally:
        config.id2label, config.label2id = kept

"""Fresh heads for a set of labels, as modules that an adapter takes with it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from math import log
from typing import Any

import torch
from torch import nn

from visionpeft.errors import BaseModelError, DataError
from visionpeft.models.vision import VisionBase

_PRIOR = 0.01  # of a class at a query before training (Lin et al. 2017, arXiv:1708.02002, §3.3)


def new_heads(base: VisionBase, labels: Sequence[str], *, seed: int = 0, boxes: bool = False) -> dict[str, nn.Module]:
    """Return a trainable module for every layer of the base whose size is the number of labels.

    Linear layers begin with normal weights of deviation 0.02 and bias 0; in detectors with independent classes with
    the bias of a probability of 0.01. A detector of n classes whose last logit means "nothing there" has n + 1 logits.

    Args:
        base: the base; it is not changed.
        labels: the names of the classes, in the order of the logits.
        seed: of the first values; the same on every device.
        boxes: of a detector: also copies of the layers that predict boxes, to be trained on from the base's values.

    Returns:
        "model.<canonical path>" -> the module, float32, on the CPU.

    Raises:
        DataError: no labels, or one of them twice.
        BaseModelError: adapters with heads are attached already and hide the base's.
    """
    if not labels or len(set(labels)) < len(labels):
        raise DataError(f"{len(labels)} labels, {len(set(labels))} different ones: give at least one, each once.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = {f"model.{path}": _fresh(base, path, len(labels)) for path in base.sight.heads(base.model)}
    if boxes:
        heads |= _boxes(base)
    return heads


def _fresh(base: VisionBase, path: str, labels: int) -> nn.Module:
    old = base.model.get_submodule(path)
    if isinstance(old, nn.Embedding):  # of the classes to denoise, and one more for none
        return nn.Embedding(labels + 1, old.embedding_dim, padding_idx=labels)
    if not isinstance(old, nn.Linear):
        raise BaseModelError(f"'{path}' is a {type(old).__name__}, not the base's head: make heads before adapters.")
    head = nn.Linear(old.in_features, labels + base.sight.background)
    nn.init.normal_(head.weight, std=0.02)
    independent = base.sight.task == "detect" and not base.sight.background
    nn.init.constant_(head.bias, -log(1 / _PRIOR - 1) if independent else 0.0)
    return head


def _boxes(base: VisionBase) -> dict[str, nn.Module]:
    """Copies of the largest modules that hold nothing but layers which predict boxes."""
    pattern = re.compile(base.sight.boxes)
    layers = [
        path for path, child in base.model.named_modules() if isinstance(child, nn.Linear) and pattern.search(path)
    ]
    roots = dict.fromkeys(re.sub(r"\.layers\.\d+$", "", path) for path in layers)
    copies: dict[str, Any] = {f"model.{root}": copy.deepcopy(base.model.get_submodule(root)) for root in roots}
    return {place: module.to("cpu", torch.float32).requires_grad_(True) for place, module in copies.items()}

"""The loss that the settings of a classification ask for, as one function of logits and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from visionpeft.data.classification import LabelKind, LabelledPictures, class_weights
from visionpeft.errors import ConfigError, did_you_mean
from visionpeft.tasks.classification_loss import (
    Terms,
    asymmetric,
    binary_cross_entropy,
    binary_focal,
    cross_entropy,
    focal,
)
from visionpeft.tasks.classification_settings import ClassWeights, LossConfig

Objective = Callable[[Tensor, Tensor], Terms]
"""Logits [N, C] and targets [N, C] -> sum and count."""

_LOSSES: Mapping[tuple[str, bool], Callable[[Tensor, Tensor, Tensor, Any], Terms]] = {
    ("cross-entropy", False): lambda z, t, w, s: cross_entropy(z, t, w, s.smoothing),
    ("cross-entropy", True): lambda z, t, w, s: binary_cross_entropy(z, t, w, s.smoothing),
    ("focal", False): lambda z, t, w, s: focal(z, t, w, s.gamma),
    ("focal", True): lambda z, t, w, s: binary_focal(z, t, w, s.gamma),
    ("asymmetric", True): lambda z, t, w, s: asymmetric(z, t, w, s.gamma_positive, s.gamma_negative, s.margin),
}
"""(kind of loss, whether several labels can stand) -> the loss of logits, targets, weights and settings."""


def objective(config: LossConfig, kind: LabelKind, weights: Tensor) -> Objective:
    """Return the loss of a kind of labels.

    Raises:
        ConfigError: the loss does not fit the labels.
    """
    loss = _LOSSES.get((config.kind, kind == "multilabel"))
    if loss is None:
        raise ConfigError(f"loss.kind '{config.kind}' is for multilabel pictures; these are {kind}: take 'focal'.")
    return lambda logits, targets: loss(logits, targets, weights, config)


def weights_of(setting: ClassWeights, pictures: LabelledPictures) -> Tensor:
    """Return the weight of each class in the loss, [C] float32; see ``data.classification.class_weights``.

    Raises:
        ConfigError: a weight for a label that there is not.
        DataError: a label without pictures is to be balanced.
    """
    labels = pictures.labels
    if isinstance(setting, dict):
        strange = [name for name in setting if name not in labels]
        if strange:
            near = did_you_mean(strange[0], labels)
            raise ConfigError(f"class_weights: there is no label '{strange[0]}': {', '.join(labels)}.{near}")
        return torch.tensor([setting.get(label, 1.0) for label in labels])
    if setting == "none":
        return torch.ones(len(labels))
    weighting = "inverse" if setting == "balanced" else "effective"
    return torch.from_numpy(class_weights(pictures, weighting)).float()

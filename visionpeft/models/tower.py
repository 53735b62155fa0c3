"""Classifiers from image towers that transformers gives no classifier for: the tower of a CLIP, and DINOv3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Logits:
    """What a classifier returns: `logits`, [N, C]."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class ClipTowerClassifier(nn.Module):
    """A linear layer on a CLIP tower's picture vectors, which are those of `CLIPVisionModelWithProjection`.

    Args:
        tower: the tower; its modules are taken over.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.config = tower.config
        self.vision_model = tower.vision_model
        self.visual_projection = tower.visual_projection
        self.classifier = nn.Linear(tower.config.projection_dim, tower.config.num_labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return picture vectors [N, D], not normalised."""
        return self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)

    def forward(self, pixel_values: Tensor) -> Logits:
        """Return the logits of pixels [N, 3, H, W]."""
        return Logits(self.classifier(self.features(pixel_values)))


class DinoV3Classifier(nn.Module):
    """A linear layer on DINOv3's class token beside the mean of its patches, as transformers has it for DINOv2.

    Args:
        tower: a `DINOv3ViTModel`.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.config = tower.config
        self.dinov3 = tower
        self.classifier = nn.Linear(2 * tower.config.hidden_size, tower.config.num_labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return [N, 2 D]: the class token and the mean of the patches."""
        tokens = self.dinov3(pixel_values).last_hidden_state
        patches = tokens[:, 1 + self.config.num_register_tokens :]
        return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)

    def forward(self, pixel_values: Tensor) -> Logits:
        """Return the logits of pixels [N, 3, H, W]."""
        return Logits(self.classifier(self.features(pixel_values)))


TOWERS: dict[str, tuple[str, type[ClipTowerClassifier] | type[DinoV3Classifier]]] = {
    "clip_vision_model": ("CLIPVisionModelWithProjection", ClipTowerClassifier),
    "dinov3_vit": ("DINOv3ViTModel", DinoV3Classifier),
}
"""What a configuration calls itself -> transformers' class of the tower, and the classifier around it."""

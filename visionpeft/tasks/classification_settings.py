"""Settings of the classification task: its pictures, how they are varied, the loss, what chooses the best step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from visionpeft.data.classification import AugmentConfig, MixConfig, PicturesConfig, SplitConfig

Metric = Literal[
    "balanced_accuracy", "auc", "average_precision", "accuracy", "f1_macro", "quadratic_kappa", "log_likelihood"
]
"""A figure of the validation pictures that chooses the best step; larger is better."""
Side = Annotated[int, Field(ge=8, le=4096)]


class Settings(BaseModel):
    """Closed and frozen, as all settings are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassifyData(PicturesConfig):
    """Labelled pictures, how they are split, varied and drawn, and the size at which the model sees them."""

    split: SplitConfig = Field(default=SplitConfig(), description="What is trained on, validated and tested on.")
    folds: int | None = Field(
        default=None, ge=3, le=100, description="Cross-validation by patient in so many parts, one run each; null: no."
    )
    fold: int | None = Field(
        default=None, ge=1, description="Which one of the folds is left out, from 1; null: all, one after the other."
    )
    augment: AugmentConfig = Field(default=AugmentConfig(), description="How training pictures are varied.")
    mix: MixConfig = Field(default=MixConfig(), description="How training pictures are mixed with each other.")
    balanced: bool = Field(default=False, description="Draw every class equally often, rare ones again and again.")
    image_size: Side | tuple[Side, Side] | None = Field(
        default=None,
        description="Side, or height and width, at which the model sees pictures; position embeddings are "
        "interpolated. Null: the base's own.",
    )
    fit: Literal["stretch", "crop", "pad"] | None = Field(
        default=None,
        description="How a picture becomes that size: stretched, its middle, or whole with borders. Null: as the base.",
    )
    workers: int = Field(default=2, ge=0, le=64, description="Threads that read and vary the next step's pictures.")
    cache: int = Field(default=1024, ge=0, description="Decoded pictures kept in memory, MiB at most.")

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> ClassifyData:
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"fold {self.fold} is none of {self.folds or 'no'} folds: set folds, or leave fold away")
        return self


class CrossEntropyLoss(Settings):
    """Cross-entropy; where several labels can stand, or a sigmoid for each, binary cross-entropy."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of a label that is spread over all of them.")


class FocalLoss(Settings):
    """Focal loss: what is right already counts less (arXiv:1708.02002)."""

    kind: Literal["focal"] = Field(description="focal")
    gamma: float = Field(default=2.0, ge=0, le=10, description="How much less; 0 is cross-entropy.")


class AsymmetricLoss(Settings):
    """Asymmetric loss for multilabel pictures: absent labels that are seen as absent count less (arXiv:2009.14119)."""

    kind: Literal["asymmetric"] = Field(description="asymmetric")
    gamma_positive: float = Field(default=0.0, ge=0, le=10, description="Focus on present labels.")
    gamma_negative: float = Field(default=4.0, ge=0, le=10, description="Focus on absent labels.")
    margin: float = Field(default=0.05, ge=0, lt=1, description="Probability up to which an absent label is right.")


LossConfig = Annotated[CrossEntropyLoss | FocalLoss | AsymmetricLoss, Field(discriminator="kind")]

ClassWeights = Literal["none", "balanced", "effective"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]]
"""What a class counts in the loss."""

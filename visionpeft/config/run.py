"""The settings of a run, composed of the settings that stand beside what they configure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from visionpeft.adapters.spec import AdapterSpec, LoraSpec
from visionpeft.evaluation.classification.settings import ReportConfig
from visionpeft.evaluation.detection.figures import DetectionReportConfig
from visionpeft.evaluation.settings import ScoreConfig
from visionpeft.evaluation.speech.figures import SpeechReportConfig
from visionpeft.tasks.classification_settings import ClassifyData, ClassWeights, CrossEntropyLoss, LossConfig, Metric
from visionpeft.tasks.detection_settings import DetectData
from visionpeft.tasks.detection_settings import Metric as DetectionMetric
from visionpeft.tasks.dreambooth_settings import DreamBoothData, PreviewConfig
from visionpeft.tasks.speech_settings import Metric as SpeechMetric
from visionpeft.tasks.speech_settings import TranscribeData
from visionpeft.training.settings import TrainConfig


class RunConfig(BaseModel, frozen=True, extra="forbid"):
    """What every run has; a task adds its data and its previews."""

    task: str = Field(description="What is learned: the name of a task.")
    base: str = Field(
        min_length=1, description="An embedded base, a hub id, a diffusers folder or a .safetensors checkpoint."
    )
    adapter: AdapterSpec = Field(
        default=LoraSpec(), description="How the model is adapted: the method, its targets and its size."
    )
    train: TrainConfig = Field(default=TrainConfig(), description="How it is trained.")
    output: Path = Field(description="The run's folder; never overwritten: an existing run needs resume.")
    resume: Literal["never", "auto"] | Path = Field(
        default="never", description="never, auto (go on from the newest whole checkpoint, or begin) or a checkpoint."
    )

    @property
    def preview_every(self) -> int:
        """Steps between previews; 0: none."""
        return 0

    def parts(self) -> tuple[RunConfig, ...]:
        """The runs that this one consists of, one a fold for example; none where it is a single run."""
        return ()


class DreamBoothRun(RunConfig, frozen=True, extra="forbid"):
    """A subject learned from a few pictures."""

    task: Literal["dreambooth"] = Field(description="What is learned: dreambooth.")
    data: DreamBoothData = Field(description="The pictures and their prompts.")
    preview: PreviewConfig | None = Field(default=None, description="Pictures made while training; null: none.")
    score: ScoreConfig = Field(default=ScoreConfig(), description="Scores taken while training.")

    @property
    def preview_every(self) -> int:
        """Steps between previews; 0: none."""
        return self.preview.every if self.preview else 0

    @model_validator(mode="before")
    @classmethod
    def _evaluate_when_scored(cls, values: Any) -> Any:
        """``score.every`` stands for ``train.evaluate_every`` where that is not set: scoring is the evaluation."""
        score = values.get("score", {}) if isinstance(values, Mapping) else None
        return (
            with_evaluations(values, score.get("every", ScoreConfig().every)) if isinstance(score, Mapping) else values
        )


class ClassifyRun(RunConfig, frozen=True, extra="forbid"):
    """A classifier of labelled pictures, with its report."""

    task: Literal["classify"] = Field(description="What is learned: classify.")
    base: str = Field(
        default="visionpeft/emoji-vit",
        min_length=1,
        description="An embedded base, a hub id or a folder of a vision model of transformers.",
    )
    scratch: bool = Field(default=False, description="Begin with random weights: what the base itself is worth.")
    data: ClassifyData = Field(description="The pictures, their labels, how they are split and varied.")
    loss: LossConfig = Field(default=CrossEntropyLoss(), description="What is made small.")
    class_weights: ClassWeights = Field(
        default="none", description="What a class counts in the loss: none, balanced, or a number a label."
    )
    layer_decay: float | None = Field(
        default=None, gt=0, le=1, description="Learning rate of a block as a share of that of the next; null: 1."
    )
    metric: Metric = Field(default="balanced_accuracy", description="What chooses the best step, on validation.")
    report: ReportConfig = Field(default=ReportConfig(), description="What is measured at the end, and how.")

    @model_validator(mode="before")
    @classmethod
    def _evaluate(cls, values: Any) -> Any:
        """Evaluate every 50 steps where nothing else is set."""
        return with_evaluations(values, 50)

    @model_validator(mode="after")
    def _mixes_pairs(self) -> ClassifyRun:
        if self.data.mix.active and self.train.batch_size % 2:
            raise ValueError(
                f"data.mix mixes pairs of pictures: train.batch_size {self.train.batch_size} is to be even"
            )
        return self

    @model_validator(mode="after")
    def _goes_on_fold_by_fold(self) -> ClassifyRun:
        if self.parts() and isinstance(self.resume, Path):
            raise ValueError("resume: a checkpoint belongs to one of the folds: set data.fold, or resume: auto")
        return self

    def parts(self) -> tuple[RunConfig, ...]:
        """One run a fold, in folders of their own, where folds are asked for and none is chosen."""
        if self.data.folds is None or self.data.fold is not None:
            return ()
        return tuple(self._fold(number) for number in range(1, self.data.folds + 1))

    def _fold(self, number: int) -> ClassifyRun:
        data = self.data.model_copy(update={"fold": number})
        return self.model_copy(update={"data": data, "output": self.output / f"fold_{number}"})


class DetectRun(RunConfig, frozen=True, extra="forbid"):
    """A detector of boxes, with its report."""

    task: Literal["detect"] = Field(description="What is learned: detect.")
    base: str = Field(
        default="visionpeft/emoji-detr",
        min_length=1,
        description="An embedded base, a hub id or a folder of a detector of transformers.",
    )
    scratch: bool = Field(default=False, description="Begin with random weights: what the base itself is worth.")
    data: DetectData = Field(description="The pictures with their boxes, how they are split and varied.")
    train_boxes: bool = Field(
        default=True, description="Train the layers that predict boxes too; the class heads are trained always."
    )
    auxiliary_loss: bool = Field(
        default=True,
        description="Let every decoder layer learn to answer, as the papers do; false: the last alone, as DETR and "
        "Conditional DETR do always.",
    )
    metric: DetectionMetric = Field(default="ap", description="What chooses the best step, on validation.")
    report: DetectionReportConfig = Field(
        default=DetectionReportConfig(), description="What is measured at the end, and how."
    )

    @model_validator(mode="before")
    @classmethod
    def _evaluate(cls, values: Any) -> Any:
        """Evaluate every 200 steps where nothing else is set."""
        return with_evaluations(values, 200)


class TranscribeRun(RunConfig, frozen=True, extra="forbid"):
    """A Whisper that writes down the speech of a place or a trade, with its report."""

    task: Literal["transcribe"] = Field(description="What is learned: transcribe.")
    base: str = Field(
        default="visionpeft/small-whisper",
        min_length=1,
        description="An embedded base, a hub id or a folder of a Whisper of transformers.",
    )
    scratch: bool = Field(default=False, description="Begin with random weights: what the base itself is worth.")
    language: str | None = Field(
        default=None, description="Of the speech, as Whisper's code of it: en, mr, …; null for English-only bases."
    )
    translate: bool = Field(default=False, description="The texts are English translations of the speech.")
    timestamps: bool = Field(default=False, description="Learn to write when segments begin and end.")
    data: TranscribeData = Field(description="The speech with its text, how it is split and varied.")
    metric: SpeechMetric = Field(default="word_accuracy", description="What chooses the best step, on validation.")
    validate_most: int = Field(
        default=200, ge=1, description="Utterances that are written down at each evaluation, at most."
    )
    report: SpeechReportConfig = Field(
        default=SpeechReportConfig(), description="What is measured at the end, and how."
    )

    @model_validator(mode="before")
    @classmethod
    def _evaluate(cls, values: Any) -> Any:
        """Evaluate every 200 steps where nothing else is set."""
        return with_evaluations(values, 200)


def with_evaluations(values: Any, every: int) -> Any:
    """Return a run's values with ``train.evaluate_every`` where that is not set."""
    if not isinstance(values, Mapping):
        return values
    train = values.get("train", {})
    if not isinstance(train, Mapping) or "evaluate_every" in train:
        return values
    return {**values, "train": {**train, "evaluate_every": every}}


TASKS: dict[str, type[RunConfig]] = {
    "dreambooth": DreamBoothRun,
    "classify": ClassifyRun,
    "detect": DetectRun,
    "transcribe": TranscribeRun,
}
"""A new task is one row here, its settings class, and its file in tasks/."""

"""The settings of a run, composed of the settings that stand beside what they configure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from visionpeft.adapters.spec import AdapterSpec, LoraSpec
from visionpeft.evaluation.settings import ScoreConfig
from visionpeft.tasks.dreambooth_settings import DreamBoothData, PreviewConfig
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
        if not isinstance(values, Mapping):
            return values
        train, score = values.get("train", {}), values.get("score", {})
        if not isinstance(train, Mapping) or not isinstance(score, Mapping) or "evaluate_every" in train:
            return values
        every = score.get("every", ScoreConfig().every)
        return {**values, "train": {**train, "evaluate_every": every}}


TASKS: dict[str, type[RunConfig]] = {"dreambooth": DreamBoothRun}
"""A new task is one row here, its settings class, and its file in tasks/."""

"""The settings of a run, composed of the settings that stand beside what they configure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from visionpeft.adapters.spec import AdapterSpec
from visionpeft.tasks.dreambooth_settings import DreamBoothData, PreviewConfig, ScoreConfig
from visionpeft.training.settings import TrainConfig


class RunConfig(BaseModel):
    """What every run has; a task adds its data and its previews."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(description="What is learned: one of the tasks of this page.")
    base: str = Field(description="The model: an embedded base, a hub id, a diffusers folder or a .safetensors checkpoint.")
    adapter: AdapterSpec = Field(description="How the model is adapted.")
    train: TrainConfig = Field(description="How it is trained.")
    output: Path = Field(description="The run's folder; never overwritten: an existing run needs resume.")
    resume: Literal["never", "auto"] | Path = Field(
        default="never", description="never | auto (go on from the newest whole checkpoint, or begin) | a checkpoint."
    )


class DreamBoothRun(RunConfig):
    """A subject learned from a few pictures."""

    task: Literal["dreambooth"] = Field(description="What is learned: dreambooth.")
    data: DreamBoothData = Field(description="The pictures and their prompts.")
    preview: PreviewConfig | None = Field(default=None, description="Pictures made while training; null: none.")
    score: ScoreConfig | None = Field(default=None, description="Scores taken while training; null: none.")


TASKS: dict[str, type[RunConfig]] = {"dreambooth": DreamBoothRun}
"""A new task is one row here, its settings class, and its file in tasks/."""

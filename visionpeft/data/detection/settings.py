"""What to read as pictures with boxes, what to do with boxes that cannot be right, and how to split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Split = Literal["train", "validation", "test"]
OnBad = Literal["error", "skip", "clip"]
Name = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Closed and frozen, as all settings are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CocoSource(Settings):
    """A COCO json file, or one for each split."""

    format: Literal["coco"] = "coco"
    folder: Path = Field(description="Where the other paths begin.")
    annotations: Path | dict[Split, Path] = Field(
        description="The json file; or one a split, as in {train: train.json, validation: val.json}."
    )
    images: Path | dict[Split, Path] | None = Field(
        default=None, description="Folder of the pictures, or one a split; null: where the json file lies."
    )

    @model_validator(mode="after")
    def _same_splits(self) -> CocoSource:
        if not isinstance(self.images, dict):
            return self
        if not isinstance(self.annotations, dict):
            raise ValueError("images is given by split and annotations is one file: give both by split, or neither")  # noqa: TRY004
        missing = sorted(set(self.annotations) - set(self.images))
        if missing:
            raise ValueError(f"images has no folder for the split '{missing[0]}', which annotations names")
        return self


class YoloSource(Settings):
    """Text files of YOLO: one a picture, a line ``class cx cy width height`` an object, as shares of the picture."""

    format: Literal["yolo"] = "yolo"
    folder: Path = Field(description="Holds data.yaml, or images/ and labels/.")
    names: tuple[Name, ...] | None = Field(
        default=None, description="Names of the classes, in the order of their numbers; null: those of data.yaml."
    )
    missing: Literal["error", "empty"] = Field(
        default="error", description="What a picture without a text file is: a mistake, or a picture without objects."
    )


class VocSource(Settings):
    """Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt."""

    format: Literal["voc"] = "voc"
    folder: Path = Field(description="Holds Annotations, JPEGImages and, where splits are given, ImageSets/Main.")
    first_pixel: Literal[0, 1] = Field(
        default=1,
        description="1: pixels are counted from 1 and the last one belongs to the box, as VOC has it; 0: corners are "
        "edges counted from 0, as some tools write.",
    )
    difficult: Literal["ignore", "keep"] = Field(
        default="ignore",
        description="Objects marked difficult: ignore learns nothing from them and scores nothing by them.",
    )


Source = Annotated[CocoSource | YoloSource | VocSource, Field(discriminator="format")]


class ScenesSplit(Settings):
    """How validation and test pictures are set apart where the files do not say."""

    validation: float = Field(
        default=0.15, ge=0.0, lt=1.0, description="Share of the pictures to validate on, where none are given."
    )
    test: float = Field(default=0.15, ge=0.0, lt=1.0, description="Share of the pictures to test on, where none are.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the draw; another seed, another split.")
    leaks: Literal["error", "say"] = Field(
        default="error", description="The same picture in two splits: refused, or told in one line each."
    )

    @model_validator(mode="after")
    def _leave_something(self) -> ScenesSplit:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation {self.validation:g} and test {self.test:g} leave nothing to train on")
        return self


class ScenesConfig(Settings):
    """Pictures with boxes: where they are, which classes count, what happens to boxes that cannot be right."""

    source: Source = Field(description="The files and their format: coco, yolo or voc.")
    labels: tuple[Name, ...] | None = Field(
        default=None, min_length=1, description="The classes, in the order to use; null: those of the files."
    )
    on_bad: OnBad = Field(
        default="error",
        description="Boxes that cannot be right (outside the picture, without area, …): error lists them all; skip "
        "leaves them out, one line each; clip cuts at the picture's edge what can be cut and leaves out the rest.",
    )
    split: ScenesSplit = Field(default=ScenesSplit(), description="What is made where the files give no split.")

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"the labels {list(labels)} are not all different")
        return labels

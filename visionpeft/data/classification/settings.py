"""Settings of labelled pictures: where they are, what their labels mean, how medical values become grey."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LabelKind = Literal["binary", "multiclass", "multilabel", "ordinal"]
"""What a label is: one of two, one of several, any number of several, one of several that have an order."""

Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]


class Settings(BaseModel):
    """Closed and frozen, as all settings are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(Settings):
    """One folder a class, below each other or below train, validation and test."""

    format: Literal["folder"] = Field(description="root/class/picture.png, or root/train/class/picture.png.")
    path: Path = Field(description="The root folder.")
    patient: str | None = Field(
        default=None,
        description="Regular expression with one group that finds the patient in a picture's name below the root, as "
        "in '/(P[0-9]+)_'; null: unknown (a DICOM file names its own).",
    )

    @field_validator("patient")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"'{pattern}' has {groups} groups: put the part that is the patient in ( )")
        return pattern


class TableSource(Settings):
    """A table with one row a picture: .csv, .tsv, .jsonl or .parquet."""

    format: Literal["table"] = Field(description="A .csv, .tsv, .jsonl or .parquet file.")
    path: Path = Field(description="The table.")
    pictures: Path | None = Field(
        default=None, description="The folder that paths begin in, and may not leave; null: the table's own."
    )
    suffix: str = Field(default="", description="What is added to each path, as in .jpg where the table has bare ids.")
    file: Name = Field(default="path", description="Column with the picture's path; scan.nii.gz#12 is one slice.")
    label: Name | Names = Field(
        default="label", description="Column with the label; or a list of columns, one a label, that hold yes or no."
    )
    separator: str | None = Field(
        default=None, min_length=1, description="What stands between the labels of one cell, as in '|'; null: one only."
    )
    present: tuple[str, ...] = Field(default=("1", "true", "yes"), description="What 'yes' is written as.")
    absent: tuple[str, ...] = Field(default=("0", "false", "no"), description="What 'no' is written as.")
    patient: Name | None = Field(default=None, description="Column with the patient; null: unknown.")
    split: Name | None = Field(default=None, description="Column with train, validation or test; null: none.")

    @model_validator(mode="after")
    def _one_way_of_several_labels(self) -> TableSource:
        if self.separator is not None and not isinstance(self.label, str):
            raise ValueError("separator belongs to one label column, and label names several: take away one of them")
        return self


class DatasetSource(Settings):
    """A dataset of the library datasets: in a folder, or on the hub. Code in it is never run."""

    format: Literal["dataset"] = Field(description="A folder of save_to_disk or of .parquet files, or a hub id.")
    path: str = Field(min_length=1, description="The folder, or the hub id.")
    name: str | None = Field(default=None, description="Which configuration of the dataset; null: its default.")
    revision: str | None = Field(default=None, description="Which commit or tag on the hub; null: the newest.")
    image: Name = Field(default="image", description="Column with the picture.")
    label: Name = Field(default="label", description="Column with the label, or with the list of labels.")
    patient: Name | None = Field(default=None, description="Column with the patient; null: unknown.")


class MedMnistSource(Settings):
    """A MedMNIST file of two-dimensional pictures (arXiv 2110.14795)."""

    format: Literal["medmnist"] = Field(description="An .npz with train_images, train_labels, val_…, test_….")
    path: Path = Field(description="The .npz file.")
    names: Names | None = Field(default=None, description="Names of the labels 0, 1, 2 …; null: their numbers.")


Source = Annotated[FolderSource | TableSource | DatasetSource | MedMnistSource, Field(discriminator="format")]


class IntensityConfig(Settings):
    """How values of more than 8 bits (DICOM, NIfTI, 16-bit pictures) become grey from black to white."""

    window: Literal["auto", "file", "full", "fixed", "percentile"] = Field(
        default="auto",
        description="file: the DICOM file's own; full: all values; fixed: center and width; percentile: of the "
        "picture's (a volume's) values; auto: the file's own or else percentile, full for 16-bit pictures.",
    )
    center: float | None = Field(default=None, allow_inf_nan=False, description="The value in the middle of the grey.")
    width: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="How many values are not clipped.")
    percentiles: tuple[float, float] = Field(default=(0.5, 99.5), description="What becomes black and white, in %.")

    @model_validator(mode="after")
    def _fits_together(self) -> IntensityConfig:
        given = self.center is not None and self.width is not None
        if (self.window == "fixed") != given:
            raise ValueError("window: fixed needs both center and width, and only it takes them")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles are two numbers from 0 to 100, the smaller first, not {low:g} and {high:g}")
        return self


class VolumeConfig(Settings):
    """Which pictures of a multi-frame DICOM file or a NIfTI volume are taken."""

    take: Literal["all", "middle"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default="all", description="all of them, the middle one, or a list of their numbers from 0."
    )
    every: int = Field(default=1, ge=1, description="With all: each how many-th.")
    axis: Literal["sagittal", "coronal", "axial"] = Field(
        default="axial", description="NIfTI: which way it is cut, by the patient's axes and not the file's."
    )


class PicturesConfig(Settings):
    """Labelled pictures: where they are and what their labels mean."""

    source: Source = Field(description="Where the pictures are.")
    kind: LabelKind | None = Field(
        default=None, description="What a label is; null: multilabel where several can stand, else by their number."
    )
    labels: tuple[Name, ...] | None = Field(
        default=None,
        description="The labels in their order; of two, the last is the positive one. Null: as the source has them, "
        "else sorted. Ordinal labels that are no numbers need it.",
    )
    intensity: IntensityConfig = Field(default=IntensityConfig(), description="How medical values become grey.")
    volumes: VolumeConfig = Field(default=VolumeConfig(), description="What is taken of files with many pictures.")
    check: Literal["pixels", "files"] = Field(
        default="pixels", description="pixels: each picture is decoded once before work begins; files: only found."
    )
    on_bad: Literal["error", "skip"] = Field(
        default="error", description="What an unusable row is: an error, or a line and left out."
    )

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) < max(2, len(labels)):
            raise ValueError(f"labels are two or more different names, not {list(labels)}")
        return labels

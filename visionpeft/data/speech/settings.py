"""What to read as speech with its text, what to do with what cannot be right, and how to split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

OnBad = Literal["error", "skip"]
Telling = Literal["error", "say", "off"]
Name = Annotated[str, Field(min_length=1)]

WINDOW = 30.0
"""Seconds that Whisper hears at once."""


class Settings(BaseModel):
    """Closed and frozen, as all settings are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(Settings):
    """Which columns mean what; all others are kept as they are, for the report and for splits."""

    file: Name | None = Field(
        default=None,
        description="Column with the path; null: path, file_name, file, audio, audio_filepath or filename.",
    )
    text: Name | None = Field(
        default=None, description="Column with the words; null: text, transcription, transcript or sentence."
    )
    start: Name | None = Field(
        default=None, description="Column with where the words begin in the file, in seconds; null: start, if there."
    )
    end: Name | None = Field(default=None, description="Column with where they end; null: end, if there.")
    segments: Name | None = Field(
        default=None,
        description='Column with a JSON list of {"start": seconds, "end": seconds, "text": words}; null: segments, if '
        "there.",
    )
    split: Name | None = Field(
        default=None, description="Column with train, validation or test; null: split, if there."
    )


class SpeechTable(Settings):
    """A table with a row an utterance: .csv, .tsv, .jsonl or .parquet."""

    format: Literal["table"] = "table"
    path: Path = Field(description="The .csv, .tsv, .jsonl or .parquet file.")
    audio: Path | None = Field(
        default=None, description="The folder that paths begin in, and may not leave; null: the table's own."
    )
    columns: Columns = Field(default=Columns(), description="Which columns mean what.")


class CommonVoice(Settings):
    """A language of Common Voice as it is downloaded: clips/, and a .tsv file a part."""

    format: Literal["common_voice"] = "common_voice"
    folder: Path = Field(description="Holds clips and the .tsv files.")
    parts: tuple[Name, ...] = Field(
        default=("train", "dev", "test"),
        min_length=1,
        description="Which .tsv files are read; train, dev and test are splits, others (validated) are not.",
    )


class AudioFolder(Settings):
    """A folder as the library datasets has it: metadata.csv, .jsonl or .parquet with the column file_name."""

    format: Literal["audiofolder"] = "audiofolder"
    folder: Path = Field(description="Holds metadata.csv or .jsonl, or train/ and test/ that do; maybe within data/.")
    columns: Columns = Field(default=Columns(), description="Which columns mean what.")


Source = Annotated[SpeechTable | CommonVoice | AudioFolder, Field(discriminator="format")]


class SpeechConfig(Settings):
    """Speech with its text: where it is, and what happens to what cannot be used."""

    source: Source = Field(description="The files and their layout: table, common_voice or audiofolder.")
    longest: float = Field(
        default=WINDOW, gt=0, le=WINDOW, description="Seconds of the longest utterance; the model hears 30."
    )
    shortest: float = Field(default=0.1, ge=0.02, description="Seconds of the shortest one.")
    long: Literal["error", "skip", "cut"] = Field(
        default="error",
        description="Longer ones: error lists them all; skip leaves them out, one line each; cut makes several of one "
        "at silences between its segments; those without segments cannot be used.",
    )
    on_bad: OnBad = Field(
        default="error",
        description="Other rows that cannot be used (no file, no sound, no text, …): error lists them all; skip leaves "
        "them out, one line each.",
    )
    check: Literal["samples", "files"] = Field(
        default="samples", description="samples: all sound is decoded once before work begins; files: only headers."
    )
    workers: int = Field(default=4, ge=1, le=64, description="Threads that read while checking.")

    @model_validator(mode="after")
    def _shortest_first(self) -> SpeechConfig:
        if self.shortest >= self.longest:
            raise ValueError(f"shortest {self.shortest:g} leaves nothing under longest {self.longest:g}")
        return self


class SpeechSplitConfig(Settings):
    """How validation and test are set apart where the files do not say, and what may not stand in two of them."""

    by: Name | None = Field(
        default=None,
        description="Column whose values are kept whole, as in speaker: all utterances of one go to one split. Null: "
        "utterances are drawn one by one.",
    )
    validation: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of the seconds to validate on.")
    test: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of the seconds to test on.")
    speaker: Literal["error", "say"] = Field(default="error", description="One value of by in two splits.")
    audio: Literal["error", "say"] = Field(default="error", description="The same sound in two splits.")
    sentence: Telling = Field(default="say", description="The same words in two splits, whoever says them.")

    @model_validator(mode="after")
    def _leave_something(self) -> SpeechSplitConfig:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation {self.validation:g} and test {self.test:g} leave nothing to train on")
        return self

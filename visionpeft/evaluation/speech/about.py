"""What the report of a speech model tells besides its figures: facts about the run, given by who made it."""

from __future__ import annotations

from pydantic import Field

from visionpeft.evaluation.about import ReportAbout


class SpeechRunAbout(ReportAbout):
    """Facts about the run of a speech model.

    Attributes:
        task: "transcribe".
        utterances: by split.
        hours: of sound, by split.
    """

    task: str = "transcribe"
    utterances: dict[str, int] = Field(default={})
    hours: dict[str, float] = Field(default={})

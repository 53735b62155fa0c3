"""What a classification report tells of the run besides its figures; the task fills it in."""

from __future__ import annotations

from pydantic import Field

from visionpeft.evaluation.about import ReportAbout


class RunAbout(ReportAbout):
    """Facts about the run of a classifier.

    Attributes:
        task: "classify".
        steps: made.
        best_step: of the chosen weights.
        counts: pictures each class is true of, by split and label.
        pictures: by split.
        patients: by split, where they are known.
    """

    task: str = "classify"
    steps: int = 0
    best_step: int | None = None
    counts: dict[str, dict[str, int]] = Field(default={})
    pictures: dict[str, int] = Field(default={})
    patients: dict[str, int] = Field(default={})

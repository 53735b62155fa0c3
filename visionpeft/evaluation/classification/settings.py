"""What a classification report measures, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rule = Literal["youden", "sensitivity", "specificity", "fixed"]
Explanation = Literal["grad-cam", "rollout", "both", "none"]


class OperatingPointConfig(BaseModel):
    """From which probability on the answer is yes. It is chosen on the validation pictures, never on the test's.

    Attributes:
        rule: "youden" takes the largest sensitivity + specificity - 1; "sensitivity" and "specificity" the threshold
            that reaches ``at_least`` of the one with as much as possible of the other; "fixed" takes ``threshold``.
        at_least: what the rules "sensitivity" and "specificity" have to reach on validation.
        threshold: of the rule "fixed", and of any class that validation has no examples for or against.
        thresholds: instead of it, of single classes, by label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule = "youden"
    at_least: float | None = Field(default=None, gt=0.0, le=1.0)
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    thresholds: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _goal_fits(self) -> OperatingPointConfig:
        needed = self.rule in ("sensitivity", "specificity")
        if needed and self.at_least is None:
            raise ValueError(f"the rule '{self.rule}' needs at_least: which {self.rule} to reach, 0.95 say")
        if not needed and self.at_least is not None:
            raise ValueError(f"the rule '{self.rule}' takes no at_least: leave it out, or use 'sensitivity'")
        return self

    @property
    def words(self) -> str:
        """The rule in a few words."""
        goal = f"{self.rule} of at least {self.at_least:g}" if self.at_least is not None else ""
        return goal or ("largest Youden index" if self.rule == "youden" else "fixed threshold")


class ReportConfig(BaseModel):
    """What a classification report measures.

    Attributes:
        operating_point: from which probability on the answer is yes.
        resamples: bootstrap resamples behind the intervals; 0 gives none.
        level: share of the resamples that an interval holds.
        seed: of the resamples.
        bins: of the calibration error and the reliability diagram.
        patient_column: column that says which pictures belong together; where the predictions have it, patients are
            resampled instead of pictures.
        subgroups: columns to split the test pictures by.
        most_groups: values of a column shown; numbers with more are cut at their quartiles, words at the largest.
        smallest_group: pictures a subgroup needs not to be marked as small.
        mistakes: errors of each sort shown as pictures.
        explain: what is shown beside them: "grad-cam", what spoke for the class; "rollout", how much of each place
            attention brings into the answer, of no class (ViT, DeiT, BEiT, DINOv2/3, CLIP, SigLIP); "both" or "none".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operating_point: OperatingPointConfig = OperatingPointConfig()
    resamples: int = Field(default=1000, ge=0, le=100_000)
    level: float = Field(default=0.95, gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    bins: int = Field(default=15, ge=2, le=100)
    patient_column: str = Field(default="patient", min_length=1)
    subgroups: tuple[str, ...] = ()
    most_groups: int = Field(default=8, ge=2, le=100)
    smallest_group: int = Field(default=30, ge=1)
    mistakes: int = Field(default=8, ge=0, le=100)
    explain: Explanation = "grad-cam"

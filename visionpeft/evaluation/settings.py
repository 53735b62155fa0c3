"""What is painted to score a run, how often, and how far the model may drift."""

from __future__ import annotations

import string
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

PLACEHOLDERS = ("subject", "class")

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ScoreConfig(BaseModel):
    """The small fixed set of pictures that scores an adapter every ``every`` steps.

    An evaluation paints ``len(prompts) * len(seeds) + len(unrelated_prompts)`` pictures: 14 by default.

    Attributes:
        every: training steps between two evaluations; 0 scores nothing.
        encoder: what compares pictures: "embedded" (the small tower in the package), or a CLIP, DINOv2 or ViT as a
            hub id or a folder.
        prompt_encoder: what compares pictures with texts, where ``encoder`` reads no text (DINOv2, ViT); a CLIP.
            Where neither reads text there is no prompt score, and the score is that of the subject alone.
        prompts: texts with ``{subject}`` in them: the words that name the subject when painting, and its class when
            the base model paints and when the text is compared with the picture.
        unrelated_prompts: texts that have nothing to do with the subject; on them the model should not have changed.
        seeds: one picture a prompt and seed. With one seed there is no diversity score.
        steps: sampling steps; fewer than for a final picture are enough to compare.
        guidance: classifier-free guidance scale; 1 is none.
        max_drift: a checkpoint that drifts farther is not chosen as the best. In distances between two random seeds
            of the base model: 0.25 is a quarter of what another seed changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=100, ge=0)
    encoder: str = Field(default="embedded", min_length=1)
    prompt_encoder: str | None = None
    prompts: tuple[str, ...] = Field(
        default=(
            "a photo of {subject}",
            "a photo of {subject} on a blue background",
            "a photo of {subject} on a green background",
            "a photo of {subject} on a striped yellow background",
        ),
        min_length=1,
    )
    unrelated_prompts: tuple[str, ...] = Field(
        default=(
            "a photo of a cat on a pink background",
            "a photo of a car at the left, on a white background",
            "a photo of a house on a yellow background",
            "a photo of a cake on a striped blue background",
            "a photo of a key on a green background",
            "a photo of a rose at the bottom, on a gray background",
        ),
        min_length=1,
    )
    seeds: tuple[Seed, ...] = Field(default=(0, 1), min_length=1)
    steps: int = Field(default=15, ge=1, le=1000)
    guidance: float = Field(default=4.0, ge=1.0, le=50.0)
    max_drift: float = Field(default=0.25, gt=0.0)

    @field_validator("prompts")
    @classmethod
    def _names_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if "subject" not in placeholders(prompt):
                raise ValueError(f"'{prompt}' does not name the subject: write {{subject}} where its words belong")
        return prompts

    @field_validator("unrelated_prompts")
    @classmethod
    def _leaves_the_subject_out(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if placeholders(prompt):
                raise ValueError(
                    f"'{prompt}' names the subject: an unrelated prompt has no {{subject}} and no {{class}}"
                )
        return prompts

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"the seeds {list(seeds)} are not all different: the same picture would count twice")
        return seeds


def placeholders(prompt: str) -> set[str]:
    """Return the names in braces in ``prompt``.

    Raises:
        ValueError: a brace is not closed, or the name is neither ``subject`` nor ``class``.
    """
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
    except ValueError as error:
        raise ValueError(f"'{prompt}': {error}; braces only name {{subject}} or {{class}}") from None
    unknown = sorted(names - set(PLACEHOLDERS))
    if unknown:
        raise ValueError(f"'{prompt}' has the unknown placeholder '{{{unknown[0]}}}': write {{subject}} or {{class}}")
    return names


def fill(prompt: str, subject: str, kind: str) -> str:
    """Return ``prompt`` with ``{subject}`` and ``{class}`` replaced: by "sks robot" and "robot", say."""
    return prompt.replace("{subject}", subject).replace("{class}", kind)

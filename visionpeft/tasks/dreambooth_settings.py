"""Settings of the DreamBooth task: the pictures of a subject, what keeps its class, how the loss is weighted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from visionpeft.data.transforms import Crop
from visionpeft.errors import ConfigError
from visionpeft.evaluation.settings import ScoreConfig
from visionpeft.inference.samplers import sampler_named

__all__ = ["DreamBoothData", "InstanceData", "PreviewConfig", "PriorData", "ScoreConfig"]

Prompt = Annotated[str, Field(min_length=1)]
_ARTICLES = frozenset({"a", "an", "the"})

Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _known_sampler(name: str) -> str:
    try:
        sampler_named(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


class Settings(BaseModel):
    """Closed and frozen, as all settings are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingSettings(Settings):
    """How pictures are sampled."""

    steps: int = Field(default=30, ge=1, le=1000, description="Sampling steps of a picture.")
    guidance: float = Field(default=4.0, ge=1.0, le=50.0, description="Classifier-free guidance scale; 1 is none.")
    sampler: str = Field(default="ddim", description="How noise becomes a picture: ddim, euler, dpm++2m, …")

    @field_validator("sampler")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_sampler(name)


class InstanceData(Settings):
    """The subject: its pictures and the words that call it."""

    images: Path = Field(description="Folder with the pictures of the subject; three to thirty are usual.")
    prompt: Prompt = Field(description="What the pictures show, with the subject's word in it: a photo of sks robot.")
    word: str = Field(
        default="sks", pattern=r"^\S+$", description="The word in the prompt that stands for this one subject."
    )
    kind: str | None = Field(
        default=None, min_length=1, description="What it is, as in robot; null: what follows the word in the prompt."
    )
    subject_token: Literal["rare", "trained"] = Field(
        default="rare",
        description="rare: a word of the model's vocabulary, only the adapter learns; trained: a new word; "
        "its embedding begins as the kind's and is trained too.",
    )

    @model_validator(mode="after")
    def _names_the_subject(self) -> InstanceData:
        words = self.prompt.split()
        if self.word not in words:
            raise ValueError(
                f"the prompt '{self.prompt}' does not hold the subject's word '{self.word}': write it where the "
                "subject is named, or set word"
            )
        if self.kind is None and words[-1] == self.word:
            raise ValueError(f"nothing follows '{self.word}' in the prompt: set kind to what it is, as in robot")
        return self

    @property
    def trains_word(self) -> bool:
        """Whether the subject's word gets an embedding of its own."""
        return self.subject_token == "trained"  # noqa: S105  (no password)

    @property
    def noun(self) -> str:
        """What the subject is, without an article: "robot"."""
        words = (self.kind or self.prompt.split(self.word, 1)[1]).split()
        return " ".join(words[1:] if words[0].lower() in _ARTICLES and len(words) > 1 else words)

    @property
    def class_words(self) -> str:
        """What the subject is one of, as a prompt reads: "a robot"."""
        return f"{'an' if self.noun[0].lower() in 'aeiou' else 'a'} {self.noun}"

    @property
    def subject_words(self) -> str:
        """What calls the subject in a prompt: "sks robot", or "sks" where the prompt goes on otherwise."""
        words = f"{self.word} {self.noun}"
        return words if words in self.prompt else self.word


class PriorData(SamplingSettings):
    """Pictures of the class, so that it stays what it was (prior preservation, arXiv 2208.12242)."""

    prompt: Prompt | Annotated[tuple[Prompt, ...], Field(min_length=1)] = Field(
        description="What class pictures show: a photo of a robot. Of several prompts each makes its share of the "
        "pictures: those that do not name the class keep everything else as it was."
    )
    count: int = Field(default=100, ge=1, le=100_000, description="How many class pictures there are.")
    weight: float = Field(default=1.0, gt=0.0, le=100.0, description="Weight of their loss beside the subject's.")
    target: Literal["pictures", "base"] = Field(
        default="base",
        description="What the model should say of them: pictures: what was mixed into them, as in the paper, which "
        "pulls the class towards these pictures; base: what the base itself says, so that only a change costs, and "
        "the empty prompt, which guidance needs, is kept too.",
    )
    images: Path | None = Field(
        default=None, description="Folder with class pictures of one's own; null: they are made by the base and kept."
    )
    seed: Seed = Field(default=0, description="Of the first class picture that is made; the next ones follow.")

    @model_validator(mode="after")
    def _knows_what_its_pictures_show(self) -> PriorData:
        if self.images is not None and len(self.prompts) > 1:
            raise ValueError("with images of one's own there is one prompt for all of them: give a single prompt")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts; class picture number i shows prompt i modulo their number."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt


class DreamBoothData(Settings):
    """What a DreamBooth run trains on, and how its loss is weighted."""

    instance: InstanceData = Field(description="The subject.")
    prior: PriorData | None = Field(default=None, description="What keeps the class; null: nothing does.")
    resolution: int | None = Field(
        default=None, ge=16, le=4096, description="Side of the training square in pixels; null: the base's own."
    )
    crop: Crop = Field(
        default="none", description="none: whole pictures in their own shape; center and random cut a square."
    )
    flip: bool = Field(default=False, description="Mirror half of the draws; wrong where left and right differ.")
    cache: Literal["memory", "disk", "none"] = Field(
        default="memory", description="Where encoded pictures are kept; none encodes them at every step."
    )
    min_snr_gamma: float | None = Field(
        default=None, gt=0.0, le=1000.0, description="Min-SNR weighting of the loss (arXiv 2303.09556); 5 is usual."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DreamBoothData:
        if self.crop == "random" and self.cache != "none":
            raise ValueError("random crops cannot be cached, each is new: set cache to none, or crop to center")
        return self

    @field_validator("cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """Take YAML's ``true`` and ``false`` (which ``on``, ``off``, ``yes`` and ``no`` are too) as memory and none."""
        return {True: "memory", False: "none"}[value] if isinstance(value, bool) else value


class PreviewConfig(SamplingSettings):
    """Pictures made while training, at fixed seeds."""

    every: int = Field(default=100, ge=1, description="Training steps between two previews.")
    prompts: tuple[Prompt, ...] = Field(min_length=1, description="One row of pictures each.")
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2, 3), min_length=1, description="One column of pictures each.")

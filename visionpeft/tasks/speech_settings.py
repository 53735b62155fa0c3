"""Settings of the transcription task: its speech, how it is varied and drawn, what chooses the best step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from visionpeft.data.speech.augment import SpeechAugment
from visionpeft.data.speech.settings import SpeechConfig, SpeechSplitConfig

Metric = Literal["word_accuracy", "character_accuracy", "log_likelihood"]
"""A figure of the validation speech that chooses the best step; larger is better. Accuracies are 1 less the error rate,
and can be below 0; the log-likelihood is that of a token."""


class TranscribeData(SpeechConfig):
    """Speech with its text, how it is split, varied and drawn."""

    split: SpeechSplitConfig = Field(
        default=SpeechSplitConfig(), description="What is trained on, validated and tested on."
    )
    augment: SpeechAugment = Field(default=SpeechAugment(), description="How training speech is varied.")
    grouped: bool = Field(
        default=True, description="Draw utterances with texts of like length together: less padding, other batches."
    )
    bucket: int = Field(
        default=32,
        ge=1,
        le=448,
        description="Texts of a batch are padded to a multiple of so many tokens: few shapes, so steps are recorded.",
    )
    window: int | None = Field(
        default=None,
        ge=1,
        le=30,
        description="Seconds that the model hears at once in training, if fewer than it is made for: short speech then"
        " trains many times faster. The adapter is used, and reported, on the model as it is made.",
    )
    cache: int = Field(default=1024, ge=0, description="Features kept in memory, MiB at most.")
    keep: bool = Field(
        default=False,
        description="Keep features on disk between runs, in the user's cache; not where chance changes sound.",
    )

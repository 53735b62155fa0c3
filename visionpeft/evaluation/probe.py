"""The scores of an adapter while it trains: a few pictures, always the same prompts and seeds, beside the base's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from visionpeft.errors import ConfigError
from visionpeft.evaluation import fidelity
from visionpeft.evaluation.calibration import (
    UNIT_SEEDS,
    Calibration,
    Vectors,
    cache_name,
    calibrate,
    prompt_scores,
    real_score,
)
from visionpeft.evaluation.encoders import Encoder
from visionpeft.evaluation.settings import ScoreConfig, fill
from visionpeft.progress import SILENT, Progress


@dataclass(frozen=True)
class PaintRequest:
    """One picture to paint: everything that it depends on besides the model."""

    prompt: str
    seed: int
    steps: int
    guidance: float


Paint = Callable[[Sequence[PaintRequest]], list[Image.Image]]
"""Paints the requests, in order, with the adapters that are active."""


class Switch(Protocol):
    """The part of an adapter manager that turns adapters off."""

    def using(self, weights: dict[str, float], /) -> AbstractContextManager[Any]:
        """Have exactly ``weights`` active until the context closes; ``{}`` is the base model."""
        ...


@dataclass(frozen=True)
class Subject:
    """What is learned.

    Attributes:
        words: what names it in a prompt: "sks robot".
        class_words: what it is one of, with the article, as a prompt reads: "a robot".
        pictures: the real ones, RGB.
    """

    words: str
    class_words: str
    pictures: Sequence[Image.Image]


@dataclass(frozen=True)
class Scores:
    """The scores of an adapter at one step.

    Attributes:
        subject: mean cosine to the real pictures, in [-1, 1].
        prompt: mean cosine to the prompts, in [-1, 1]; None where no encoder reads text.
        diversity: mean distance between pictures of one prompt, in [0, 2]; None with one seed.
        drift: distance from the base model on unrelated prompts, in distances between two of its seeds; from 0.
        subject_share: share of the way from the base model's subject score to that of the real pictures.
        other_prompt: mean cosine to the other prompts; None as ``prompt``, or where all prompts are the same.
        prompt_share: how far the pictures are nearer to their own prompts than to the others, as a share of how far
            the base model's are: 0 ignores the prompts, 1 follows them as the base does. What the subject takes from
            every prompt alike, by not looking like its class, does not count: that is the subject's business.
        score: `fidelity.joint_score` of the two shares, in [0, 1].
        eligible: whether drift is within the bound; the best checkpoint is chosen among these.
    """

    subject: float
    prompt: float | None
    other_prompt: float | None
    diversity: float | None
    drift: float
    subject_share: float
    prompt_share: float | None
    score: float
    eligible: bool

    def metrics(self) -> dict[str, float]:
        """Return the figures there are, by name; ``eligible`` is 0 or 1."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


class Probe:
    """Scores the active adapter on a small fixed set of pictures.

    Args:
        paint: paints with what is active; it must use the requests' seeds and no other random numbers.
        manager: turns the adapters off to paint as the base model does.
        encoder: compares pictures.
        settings: prompts, seeds, steps, bound.
        subject: what is learned.
        prompt_encoder: compares pictures with texts; default ``encoder``, where that reads text.
        base_hash: of the base model, to keep its scores apart from another's.
        cache: folder to keep the base model's scores in; None measures them in every process.
        agree: gives several processes, which paint together, the same kept scores.
        progress: where one-line notes go.

    Raises:
        ConfigError: every unrelated prompt names the class of the subject.
    """

    def __init__(
        self,
        paint: Paint,
        manager: Switch,
        encoder: Encoder,
        settings: ScoreConfig,
        subject: Subject,
        *,
        prompt_encoder: Encoder | None = None,
        base_hash: str = "",
        cache: Path | None = None,
        agree: Callable[[Calibration | None], Calibration | None] = lambda kept: kept,
        progress: Progress = SILENT,
    ) -> None:
        self._paint, self._manager, self._encoder, self._settings = paint, manager, encoder, settings
        self._subject, self._base_hash, self._cache, self._progress = subject, base_hash, cache, progress
        self._agree = agree
        self._prompt_encoder = prompt_encoder or (encoder if encoder.embed_texts is not None else None)
        self._unrelated = _without_class(settings.unrelated_prompts, subject.class_words, progress)
        self._real_MD = encoder.things(encoder.pictures(subject.pictures))
        self._texts_PE = self._embed_texts()
        self._calibration: Calibration | None = None

    def calibration(self) -> Calibration:
        """Return the base model's scores; painted and measured in the first call, then kept."""
        if self._calibration is None:
            self._calibration = self._agree(self._kept()) or self._measured()
            self._note(self._calibration)
        return self._calibration

    def scores(self) -> Scores:
        """Paint the set with what is active and score it."""
        base = self.calibration()
        painted = self._painted(self._subject.words, seeds=self._settings.seeds[:1])
        subject = fidelity.subject_fidelity(painted.subject.flatten(0, 1), self._real_MD)
        prompt, other = prompt_scores(painted, self._texts_PE)
        drift = fidelity.drift(painted.unrelated[0], base.unrelated, base.seed_distance)
        subject_share = fidelity.share_of_way(base.subject, subject, base.real)
        prompt_share = _prompt_share(base, prompt, other)
        return Scores(
            subject=subject,
            prompt=prompt,
            other_prompt=other,
            diversity=fidelity.diversity(painted.subject),
            drift=drift,
            subject_share=subject_share,
            prompt_share=prompt_share,
            score=fidelity.joint_score(subject_share, prompt_share),
            eligible=drift <= self._settings.max_drift,
        )

    def _kept(self) -> Calibration | None:
        if self._cache is None:
            return None
        kept = Calibration.load(self._cache / self._cache_name())
        same_encoder = kept is not None and abs(kept.real - real_score(self._real_MD)) < 1e-4
        return kept if same_encoder else None

    def _measured(self) -> Calibration:
        with self._manager.using({}):
            painted = self._painted(self._subject.class_words, seeds=_unit_seeds(self._settings.seeds))
        measured = calibrate(painted, self._real_MD, self._texts_PE)
        if self._cache is not None:
            measured.save(self._cache / self._cache_name())
        return measured

    def _painted(self, words: str, seeds: Sequence[int]) -> Vectors:
        """Paint subject prompts with all seeds of the settings, and unrelated prompts with ``seeds``."""
        settings = self._settings
        prompts = [fill(prompt, words, self._subject.class_words) for prompt in settings.prompts]
        wanted = [self._request(prompt, seed) for prompt in prompts for seed in settings.seeds]
        wanted += [self._request(prompt, seed) for seed in seeds for prompt in self._unrelated]
        pictures = self._paint(wanted)
        own = len(prompts) * len(settings.seeds)
        vectors = self._encoder.pictures(pictures)
        return Vectors(
            subject=self._encoder.things(vectors[:own]).unflatten(0, (len(prompts), len(settings.seeds))),
            prompt=self._for_prompts(pictures[:own], vectors[:own]),
            unrelated=vectors[own:].unflatten(0, (len(seeds), len(self._unrelated))),
        )

    def _for_prompts(self, pictures: Sequence[Image.Image], vectors_ND: Tensor) -> Tensor | None:
        if self._prompt_encoder is None:
            return None
        same = self._prompt_encoder is self._encoder
        vectors = vectors_ND if same else self._prompt_encoder.pictures(pictures)
        return vectors.unflatten(0, (len(self._settings.prompts), len(self._settings.seeds)))

    def _embed_texts(self) -> Tensor | None:
        """The prompts with the class in the subject's place: no encoder knows the subject's own word."""
        words = self._subject.class_words
        if self._prompt_encoder is None:
            return None
        return self._prompt_encoder.texts([fill(prompt, words, words) for prompt in self._settings.prompts])

    def _request(self, prompt: str, seed: int) -> PaintRequest:
        return PaintRequest(prompt, seed, self._settings.steps, self._settings.guidance)

    def _cache_name(self) -> str:
        parts = {
            "base": self._base_hash,
            "encoders": [self._encoder.name, self._prompt_encoder.name if self._prompt_encoder else None],
            "class": self._subject.class_words,
            "unrelated": self._unrelated,
            "settings": self._settings.model_dump(include={"prompts", "seeds", "steps", "guidance"}, mode="json"),
        }
        return cache_name(parts, [picture.convert("RGB").tobytes() for picture in self._subject.pictures])

    def _note(self, base: Calibration) -> None:
        """Say, one line each, what the scores of this run cannot tell."""
        if base.prompt is None:
            self._progress.say(
                f"score: the encoder '{self._encoder.name}' reads no text, so there is no prompt score and the subject "
                "decides alone; set score.prompt_encoder to a CLIP to have one"
            )
        elif not _prompts_tell(base):
            self._progress.say(
                "score: the encoder does not see the base model's pictures follow these prompts (own "
                f"{_spelt(base.prompt)}, others {_spelt(base.other_prompt)}), so the subject decides alone; give "
                "score.prompts that differ more"
            )
        if len(self._real_MD) < 2:
            self._progress.say("score: with one picture of the subject, a likeness to that picture is all there is")
        if base.real - base.subject < fidelity.MIN_HEADROOM:
            self._progress.say(
                f"score: to the encoder '{self._encoder.name}' the base model's pictures of '"
                f"{self._subject.class_words}' are as near to the subject as its own pictures are to each other "
                f"({base.subject:.3f} and {base.real:.3f}); the subject score tells little, try another encoder"
            )


def _prompt_share(base: Calibration, prompt: float | None, other: float | None) -> float | None:
    """None as well where the encoder does not see that the base model follows its prompts."""
    if prompt is None or other is None or base.prompt is None or base.other_prompt is None or not _prompts_tell(base):
        return None
    return fidelity.share_of_way(0.0, prompt - other, base.prompt - base.other_prompt)


def _prompts_tell(base: Calibration) -> bool:
    """Whether the base model's pictures are nearer to their own prompts than to the others, if there are others."""
    if base.prompt is None or base.other_prompt is None:
        return False
    return base.prompt - base.other_prompt >= fidelity.MIN_HEADROOM


def _spelt(figure: float | None) -> str:
    return "none" if figure is None else f"{figure:.3f}"


def _unit_seeds(seeds: Sequence[int]) -> list[int]:
    """The first seed of the set, and others that follow it."""
    return [(seeds[0] + i) % 2**63 for i in range(UNIT_SEEDS)]


def _without_class(prompts: Sequence[str], class_words: str, progress: Progress) -> list[str]:
    """Leave out prompts that name the subject's class: they are not unrelated."""
    noun = re.sub(r"^(a|an|the)\s+", "", class_words.strip(), flags=re.IGNORECASE)
    named = [prompt for prompt in prompts if re.search(rf"\b{re.escape(noun)}\b", prompt, re.IGNORECASE)]
    kept = [prompt for prompt in prompts if prompt not in named]
    if not kept:
        raise ConfigError(
            f"score.unrelated_prompts: every one names '{noun}', the subject's class; give unrelated ones"
        )
    for prompt in named:
        progress.say(f"score: '{prompt}' names the subject's class and is left out of the unrelated prompts")
    return kept

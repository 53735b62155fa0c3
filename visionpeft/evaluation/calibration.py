"""What the base model scores on the fixed set: the zero of every scale, painted once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from visionpeft import safefile
from visionpeft.errors import FileFormatError
from visionpeft.evaluation import fidelity

UNIT_SEEDS = 3
"""Seeds a prompt that the distance between two seeds is measured over: three pairs."""


@dataclass(frozen=True)
class Calibration:
    """The base model's own scores.

    Attributes:
        subject: its pictures of the class against the real pictures; a subject score as high as this is no likeness.
        real: the real pictures among themselves; what a perfect likeness scores.
        prompt: its pictures against their own prompts; None where no encoder reads text.
        other_prompt: its pictures against the other prompts; what ignoring the prompt scores.
        diversity: mean distance between its pictures of one prompt; None with one seed.
        seed_distance: mean distance between two seeds on the unrelated prompts; the unit of drift.
        unrelated: its pictures of the unrelated prompts with the first seed, as vectors [K, D].
    """

    subject: float
    real: float
    prompt: float | None
    other_prompt: float | None
    diversity: float | None
    seed_distance: float
    unrelated: Tensor

    def metrics(self) -> dict[str, float]:
        """Return the figures there are, by name, for ``metrics.json``."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        return {name: float(value) for name, value in figures.items() if value is not None}

    def save(self, path: Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        safefile.save(path, {"unrelated": self.unrelated}, {_KEY: json.dumps(self.metrics(), sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Calibration | None:
        """Read what `save` wrote; None where there is no such file or it is damaged, so that it is measured anew."""
        if not path.is_file():
            return None
        try:
            tensors, metadata = safefile.load(path)
            return cls(**dict.fromkeys(_FIGURES) | json.loads(metadata[_KEY]), unrelated=tensors["unrelated"])
        except (FileFormatError, KeyError, TypeError, ValueError):
            return None


_KEY = "visionpeft.calibration"
_FIGURES = ("subject", "real", "prompt", "other_prompt", "diversity", "seed_distance")


@dataclass(frozen=True)
class Vectors:
    """Embeddings of one painting of the set.

    Attributes:
        subject: subject pictures [P, S, D], as the picture encoder sees them.
        prompt: the same [P, S, E], as the encoder that reads text sees them; None where there is none.
        unrelated: unrelated pictures [seeds, K, D].
    """

    subject: Tensor
    prompt: Tensor | None
    unrelated: Tensor


def calibrate(base: Vectors, real_MD: Tensor, texts_PE: Tensor | None) -> Calibration:
    """Score the base model's pictures.

    Args:
        base: its vectors, with `UNIT_SEEDS` seeds of the unrelated prompts.
        real_MD: the real pictures.
        texts_PE: the prompts.
    """
    prompt, other = prompt_scores(base, texts_PE)
    return Calibration(
        subject=fidelity.subject_fidelity(base.subject.flatten(0, 1), real_MD),
        real=real_score(real_MD),
        prompt=prompt,
        other_prompt=other,
        diversity=fidelity.diversity(base.subject),
        seed_distance=fidelity.seed_distance(base.unrelated),
        unrelated=base.unrelated[0],
    )


def real_score(real_MD: Tensor) -> float:
    """`fidelity.real_fidelity`; one real picture is only like itself, so a copy of it is the perfect likeness."""
    return fidelity.real_fidelity(real_MD) if len(real_MD) > 1 else 1.0


def prompt_scores(painted: Vectors, texts_PE: Tensor | None) -> tuple[float | None, float | None]:
    """Return prompt fidelity against the pictures' own prompts and against the others'; None where there is none."""
    if painted.prompt is None or texts_PE is None:
        return None, None
    pictures = painted.prompt
    texts = texts_PE[:, None].expand(pictures.shape[0], pictures.shape[1], -1).flatten(0, 1)
    flat = pictures.flatten(0, 1)
    return fidelity.prompt_fidelity(flat, texts), fidelity.other_prompt_fidelity(flat, texts)


def cache_name(parts: Mapping[str, object], pictures: Sequence[bytes]) -> str:
    """Return the file name of a calibration: a hash of all that it depends on."""
    digest = hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode())
    for picture in pictures:
        digest.update(hashlib.sha256(picture).digest())
    return f"calibration-{digest.hexdigest()[:32]}.safetensors"

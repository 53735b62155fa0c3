"""Scores of generated pictures as pure functions of their embeddings.

Shapes: N generated and M real pictures, P prompts, S seeds, K unrelated prompts, D numbers an embedding.
Embeddings are scaled to unit length here, so any scale may come in. Similarity is the cosine, in [-1, 1]; distance is
1 - cosine, in [0, 2]. All is computed in float64: the scores of two checkpoints often differ in the third decimal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_HEADROOM = 0.02
"""Least way, in cosine, that `share_of_way` divides by: below it the encoder cannot tell the two ends apart."""


def subject_fidelity(generated_ND: Tensor, real_MD: Tensor) -> float:
    """Mean cosine between every generated and every real picture: CLIP-I or DINO of DreamBooth (arXiv:2208.12242).

    Raises:
        ValueError: either is empty, not two-dimensional, or the widths differ.
    """
    return float((_unit(generated_ND, 2) @ _unit(real_MD, 2).T).mean())


def real_fidelity(real_MD: Tensor) -> float:
    """Mean cosine between every two different real pictures: what a perfect likeness scores.

    Raises:
        ValueError: fewer than two pictures.
    """
    return 1.0 - _mean_distance(_unit(real_MD, 2))


def prompt_fidelity(pictures_ND: Tensor, texts_ND: Tensor) -> float:
    """Mean cosine between each picture and its own text: CLIP-T of DreamBooth (arXiv:2208.12242).

    Raises:
        ValueError: the shapes differ or are empty.
    """
    pictures, texts = _same(pictures_ND, texts_ND)
    return float((pictures * texts).sum(-1).mean())


def other_prompt_fidelity(pictures_ND: Tensor, texts_ND: Tensor) -> float | None:
    """Mean cosine between each picture and the other texts: what ignoring the prompt scores; None where none differ.

    Raises:
        ValueError: the shapes differ or are empty.
    """
    pictures, texts = _same(pictures_ND, texts_ND)
    differ = (texts @ texts.T) < 1.0 - 1e-6
    return float((pictures @ texts.T)[differ].mean()) if bool(differ.any()) else None


def diversity(pictures_PSD: Tensor) -> float | None:
    """Mean distance between pictures of the same prompt; None where each prompt has one picture.

    An adapter that paints its training pictures again, whatever the seed, falls towards 0.

    Raises:
        ValueError: empty or not three-dimensional.
    """
    pictures = _unit(pictures_PSD, 3)
    if pictures.shape[1] < 2:
        return None
    return sum(_mean_distance(of_prompt) for of_prompt in pictures) / len(pictures)


def seed_distance(seeds_SKD: Tensor) -> float:
    """Mean distance between pictures of the same prompt by different seeds, over K prompts and all pairs of S seeds.

    Raises:
        ValueError: fewer than two seeds, or the pictures do not differ at all.
    """
    seeds = _unit(seeds_SKD, 3)
    distance = sum(_mean_distance(of_prompt) for of_prompt in seeds.transpose(0, 1)) / seeds.shape[1]
    if distance <= 1e-9:
        raise ValueError("the base model paints the same picture for every seed: drift has no unit")
    return distance


def drift(adapted_KD: Tensor, base_KD: Tensor, unit: float) -> float:
    """Mean distance from the base model's pictures, same prompts and seeds, in units of ``unit``.

    Args:
        adapted_KD: pictures with the adapter.
        base_KD: pictures of the base model.
        unit: `seed_distance` of the base model on the same prompts, so that 0.25 is a quarter of the distance between
            two random seeds, 0 is no change and 1 is as far as another seed.

    Raises:
        ValueError: the shapes differ or are empty, or ``unit`` is not above 0.
    """
    if unit <= 0:
        raise ValueError(f"the distance between two seeds is {unit}: expected above 0")
    adapted, base = _same(adapted_KD, base_KD)
    return float((1.0 - (adapted * base).sum(-1)).clamp(min=0.0).mean()) / unit


def share_of_way(before: float, after: float, real: float) -> float:
    """Share of the way from ``before`` to ``real`` that ``after`` has gone: 0 none, 1 all; may be below 0 or above 1.

    A way shorter than `MIN_HEADROOM` counts as that long: noise is not divided by nearly nothing.
    """
    return (after - before) / max(real - before, MIN_HEADROOM)


def joint_score(subject_share: float, prompt_share: float | None) -> float:
    """Subject × prompt in [0, 1], each cut to [0, 1] before.

    Both are shares of a way. Subject: from the base model's pictures of the class (0) to the real pictures among
    themselves (1). Prompt: how far pictures are nearer to their own prompts than to others, from not at all (0) to as
    far as the base model's (1); a subject unlike its class loses nothing by that, as it is as unlike in every prompt.
    So the base model scores 0 (no subject), copies of the training pictures score near 0 (no prompt), and a surplus
    on one side buys nothing on the other. Without a prompt share (None) the subject stands alone.
    """
    subject = min(max(subject_share, 0.0), 1.0)
    return subject if prompt_share is None else subject * min(max(prompt_share, 0.0), 1.0)


def _unit(vectors: Tensor, dimensions: int) -> Tensor:
    """Vectors along the last axis at unit length, float64 on the CPU."""
    if vectors.ndim != dimensions or vectors.numel() == 0:
        raise ValueError(
            f"expected embeddings in {dimensions} dimensions, none empty; got shape {tuple(vectors.shape)}"
        )
    return F.normalize(vectors.detach().to("cpu", torch.float64), dim=-1)


def _same(left_ND: Tensor, right_ND: Tensor) -> tuple[Tensor, Tensor]:
    if left_ND.shape != right_ND.shape:
        raise ValueError(f"expected two of the same shape, got {tuple(left_ND.shape)} and {tuple(right_ND.shape)}")
    return _unit(left_ND, 2), _unit(right_ND, 2)


def _mean_distance(unit_ND: Tensor) -> float:
    """Mean of 1 - cosine over the pairs of different rows."""
    count = len(unit_ND)
    if count < 2:
        raise ValueError(f"expected at least two pictures to compare, got {count}")
    pairs = torch.triu_indices(count, count, offset=1)
    cosines = (unit_ND[pairs[0]] * unit_ND[pairs[1]]).sum(-1)
    return float((1.0 - cosines).mean())

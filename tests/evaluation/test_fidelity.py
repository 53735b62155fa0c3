from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionpeft.evaluation import fidelity


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    return float(np.dot(x, y) / math.sqrt(np.dot(x, x)) / math.sqrt(np.dot(y, y)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subject_fidelity_is_the_mean_over_all_pairs(dtype):
    generated, real = vectors(3, 8).to(dtype), vectors(5, 8, seed=1).to(dtype)
    expected = np.mean([cosine(g, r) for g in generated for r in real])
    assert fidelity.subject_fidelity(generated, real) == pytest.approx(
        expected, abs=1e-12 if dtype.itemsize > 4 else 1e-6
    )


def test_real_fidelity_leaves_out_a_picture_with_itself():
    real = vectors(4, 8)
    expected = np.mean([cosine(real[i], real[j]) for i in range(4) for j in range(4) if i != j])
    assert fidelity.real_fidelity(real) == pytest.approx(expected, abs=1e-9)
    assert fidelity.real_fidelity(torch.eye(3)) == pytest.approx(0.0, abs=1e-12)


def test_a_copy_of_the_real_pictures_scores_at_least_as_they_do():
    real = vectors(5, 16)
    assert fidelity.subject_fidelity(real, real) > fidelity.real_fidelity(real)


def test_prompt_fidelity_pairs_each_picture_with_its_text():
    pictures, texts = vectors(4, 8), vectors(4, 8, seed=1)
    own = np.mean([cosine(p, t) for p, t in zip(pictures, texts, strict=True)])
    others = np.mean([cosine(pictures[i], texts[j]) for i in range(4) for j in range(4) if i != j])
    assert fidelity.prompt_fidelity(pictures, texts) == pytest.approx(own, abs=1e-9)
    assert fidelity.other_prompt_fidelity(pictures, texts) == pytest.approx(others, abs=1e-9)


def test_other_prompts_are_those_with_another_text():
    texts = torch.eye(4)[[0, 0, 1, 1]]
    pictures = torch.eye(4)[[0, 0, 0, 0]]
    assert fidelity.other_prompt_fidelity(pictures, texts) == pytest.approx(0.5)
    assert fidelity.other_prompt_fidelity(pictures, texts[[0, 0, 0, 0]]) is None


def test_diversity_compares_within_a_prompt_only():
    same = torch.eye(3)[[0, 0]].unsqueeze(0)
    apart = torch.eye(3)[[1, 2]].unsqueeze(0)
    assert fidelity.diversity(torch.cat([same, apart])) == pytest.approx(0.5)
    assert fidelity.diversity(same.expand(3, -1, -1)) == pytest.approx(0.0, abs=1e-12)
    assert fidelity.diversity(same[:, :1]) is None


def test_drift_is_0_for_the_base_and_1_for_another_seed():
    seeds = vectors(2, 50, 64)
    unit = fidelity.seed_distance(seeds)
    assert fidelity.drift(seeds[0], seeds[0], unit) == pytest.approx(0.0, abs=1e-12)
    assert fidelity.drift(seeds[1], seeds[0], unit) == pytest.approx(1.0, abs=1e-12)


def test_seed_distance_is_the_mean_over_prompts_and_pairs():
    seeds = vectors(3, 2, 8)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([1 - cosine(seeds[a, k], seeds[b, k]) for k in range(2) for a, b in pairs])
    assert fidelity.seed_distance(seeds) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="same picture"):
        fidelity.seed_distance(seeds[:1].expand(2, -1, -1))


@pytest.mark.parametrize(
    ("before", "after", "real", "expected"),
    [(0.6, 0.6, 0.8, 0.0), (0.6, 0.7, 0.8, 0.5), (0.6, 0.8, 0.8, 1.0), (0.6, 0.5, 0.8, -0.5), (0.8, 0.81, 0.8, 0.5)],
)
def test_share_of_way(before, after, real, expected):
    assert fidelity.share_of_way(before, after, real) == pytest.approx(expected)


def test_neither_side_of_the_score_pays_for_the_other():
    assert fidelity.joint_score(0.5, 0.5) == pytest.approx(0.25)
    assert fidelity.joint_score(3.0, 0.5) == pytest.approx(0.5)
    assert fidelity.joint_score(0.5, 2.0) == pytest.approx(0.5)
    assert fidelity.joint_score(-1.0, -1.0) == 0.0
    assert fidelity.joint_score(0.7, None) == pytest.approx(0.7)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_scores_do_not_depend_on_the_vectors_lengths(scale, seed):
    a, b = vectors(3, 6, seed=seed), vectors(4, 6, seed=seed + 1)
    assert fidelity.subject_fidelity(a * scale, b) == pytest.approx(fidelity.subject_fidelity(a, b), abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fidelity.subject_fidelity(torch.zeros(0, 4), vectors(2, 4)),
        lambda: fidelity.real_fidelity(vectors(1, 4)),
        lambda: fidelity.prompt_fidelity(vectors(2, 4), vectors(3, 4)),
        lambda: fidelity.diversity(vectors(2, 4)),
        lambda: fidelity.drift(vectors(2, 4), vectors(2, 4), 0.0),
        lambda: fidelity.seed_distance(vectors(1, 2, 4)),
    ],
)
def test_wrong_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|distance"):
        wrong()

"""Losses of classification against torch, closed forms in float64, and what their papers say of limits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from visionpeft.inference.ordinal import ordinal_logits
from visionpeft.tasks.classification_loss import asymmetric, binary_cross_entropy, binary_focal, cross_entropy, focal

N, C = 7, 4
EVEN = torch.ones(C, dtype=torch.float64)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, C, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(C, (N,), generator=generator)
    soft = torch.rand(N, C, generator=generator, dtype=torch.float64)
    weights = torch.rand(C, generator=generator, dtype=torch.float64) + 0.5
    return logits.requires_grad_(), labels, soft, weights


def divided(terms):
    return terms[0] / terms[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(case, smoothing):
    logits, labels, _, weights = case
    mine = divided(cross_entropy(logits, F.one_hot(labels, C).double(), weights, smoothing))
    torch.testing.assert_close(mine, F.cross_entropy(logits, labels, weights, label_smoothing=smoothing))


def test_cross_entropy_of_mixed_targets_is_torchs(case):
    logits, _, soft, _ = case
    mixed = soft / soft.sum(1, keepdim=True)
    torch.testing.assert_close(divided(cross_entropy(logits, mixed, EVEN)), F.cross_entropy(logits, mixed))


def test_binary_cross_entropy_is_torchs(case):
    logits, _, soft, weights = case
    mine = divided(binary_cross_entropy(logits, soft, weights))
    torch.testing.assert_close(mine, F.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights))
    smoothed = divided(binary_cross_entropy(logits, soft, EVEN, 0.2))
    torch.testing.assert_close(smoothed, F.binary_cross_entropy_with_logits(logits, soft * 0.8 + 0.1))


def test_focal_is_its_formula(case):
    logits, labels, soft, weights = case
    p = logits.softmax(1).detach().numpy()
    expected = sum(-weights[c] * (1 - p[n, c]) ** 1.5 * math.log(p[n, c]) for n, c in enumerate(labels.tolist()))
    assert float(focal(logits.detach(), F.one_hot(labels, C).double(), weights, 1.5)[0]) == pytest.approx(
        float(expected)
    )
    q, t, w = logits.sigmoid().detach().numpy(), soft.numpy(), weights.numpy()
    terms = w * t * (1 - q) ** 1.5 * np.log(q) + (1 - t) * q**1.5 * np.log(1 - q)
    assert float(binary_focal(logits.detach(), soft, weights, 1.5)[0]) == pytest.approx(-terms.sum())


def test_without_focus_they_are_cross_entropy(case):
    logits, labels, soft, weights = case
    hard = F.one_hot(labels, C).double()
    torch.testing.assert_close(focal(logits, hard, weights, 0.0), cross_entropy(logits, hard, weights))
    plain = binary_cross_entropy(logits, soft, weights)
    torch.testing.assert_close(binary_focal(logits, soft, weights, 0.0), plain)
    torch.testing.assert_close(asymmetric(logits, soft, weights, 0.0, 0.0, 0.0), plain)
    torch.testing.assert_close(asymmetric(logits, soft, weights, 2.0, 2.0, 0.0), binary_focal(logits, soft, weights, 2))


def test_asymmetric_is_its_formula(case):
    logits, _, soft, weights = case
    p, t, w = logits.sigmoid().detach().numpy(), soft.numpy(), weights.numpy()
    shifted = np.maximum(p - 0.05, 0)
    terms = w * t * (1 - p) * np.log(p) + (1 - t) * shifted**4 * np.log(1 - shifted)
    assert float(asymmetric(logits.detach(), soft, weights, 1.0, 4.0, 0.05)[0]) == pytest.approx(-terms.sum())


def test_an_absent_class_below_the_margin_counts_for_nothing():
    logits = torch.full((1, C), -4.0, dtype=torch.float64, requires_grad=True)  # p = 0.018
    asymmetric(logits, torch.zeros(1, C), EVEN, 0.0, 4.0, 0.05)[0].backward()
    assert logits.grad.abs().max() < 1e-30


@pytest.mark.parametrize("size", [60.0, 1000.0])
def test_extreme_logits_give_finite_slopes(size):
    logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
    targets, weights = torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.ones(C)
    half = targets / 2
    for terms in (
        cross_entropy(logits, half, weights, 0.1), focal(logits, half, weights, 2.0),
        binary_cross_entropy(logits, targets, weights), binary_focal(logits, targets, weights, 2.0),
        asymmetric(logits, targets, weights, 1.0, 4.0, 0.05), asymmetric(logits, targets, weights, 0.5, 0.5, 0.0),
    ):  # fmt: skip
        (slope,) = torch.autograd.grad(terms[0], logits)
        assert torch.isfinite(terms[0])
        assert torch.isfinite(slope).all()


def test_half_precision_is_computed_in_float32(case):
    logits, labels, _, weights = case
    hard = F.one_hot(labels, C).double()
    rough = logits.detach().bfloat16()
    exact = cross_entropy(rough.double(), hard, weights)[0]
    assert float(cross_entropy(rough, hard.float(), weights.float())[0]) == pytest.approx(float(exact), rel=1e-5)


def test_ordinal_probabilities_are_the_products_of_the_paper(case):
    thresholds = case[0][:, : C - 1]
    passed = thresholds.sigmoid()
    rising = [torch.ones(N, dtype=torch.float64), *(passed[:, : k + 1].prod(1) for k in range(C - 1)), torch.zeros(N)]
    expected = torch.stack([rising[k] - rising[k + 1] for k in range(C)], 1)
    torch.testing.assert_close(ordinal_logits(thresholds).exp(), expected)
    torch.testing.assert_close(ordinal_logits(thresholds).softmax(1), expected)


def test_ordinal_cross_entropy_is_the_papers_conditional_loss(case):
    """CORN: for each threshold k a binary loss over the samples with y ≥ k only."""
    thresholds, labels = case[0][:, : C - 1], case[1]
    expected = sum(
        F.binary_cross_entropy_with_logits(
            thresholds[labels >= k, k], (labels[labels >= k] > k).double(), reduction="sum"
        )
        for k in range(C - 1)
    )
    mine = cross_entropy(ordinal_logits(thresholds), F.one_hot(labels, C).double(), EVEN)
    torch.testing.assert_close(mine[0], expected)


def test_a_focus_below_one_has_finite_slopes_where_all_is_right():
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    total, _ = focal(logits, torch.tensor([[1.0, 0.0]]), torch.ones(2), 0.5)
    total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()

"""Losses of classification as pure functions: sums with their counts, on the device, for hard and soft targets alike.

N samples, C classes. A softmax loss takes targets [N, C] whose rows sum to 1 (one-hot, or mixed by MixUp); a sigmoid
loss takes targets [N, C] in [0, 1], each class by itself. Logits of an ordinal head become class logits first
(`visionpeft.inference.ordinal`), so ordinal labels have the softmax losses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Terms = tuple[Tensor, Tensor]
"""What a loss gives, scalars on the device: the sum of its terms and their count (of weights, where there are)."""


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Terms:
    """Return -Σ w_c t̃_c log softmax(z)_c with t̃ = (1 - ε) t + ε / C, counted as Σ w_c t_c.

    Divided, that is ``torch.nn.functional.cross_entropy`` with class weights and label smoothing (arXiv:1512.00567).

    Args:
        logits: z, [N, C] in any dtype.
        targets: t, [N, C].
        weights: w, [C].
        smoothing: ε in [0, 1).
    """
    smooth = targets * (1.0 - smoothing) + smoothing / targets.shape[1]
    losses = -(weights * smooth * F.log_softmax(_exact(logits), dim=1))
    return losses.sum(), (weights * targets).sum()


def focal(logits: Tensor, targets: Tensor, weights: Tensor, gamma: float) -> Terms:
    """Return -Σ w_c t_c (1 - p_c)^γ log p_c with p = softmax(z), counted as Σ w_c t_c (arXiv:1708.02002).

    Args:
        logits: z, [N, C] in any dtype.
        targets: t, [N, C].
        weights: w, [C]; the paper's α.
        gamma: γ, 0 or more; 0 is cross-entropy.
    """
    logs = F.log_softmax(_exact(logits), dim=1)
    # 1 - p as -expm1(log p): exact where p is nearly 1; above 0, so that its power has a slope
    missing = (-torch.expm1(logs)).clamp(min=1e-12)
    return -(weights * targets * missing.pow(gamma) * logs).sum(), (weights * targets).sum()


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Terms:
    """Return -Σ [w_c t̃ log σ(z) + (1 - t̃) log σ(-z)] with t̃ = (1 - ε) t + ε / 2, counted as N · C.

    Divided, that is ``binary_cross_entropy_with_logits`` with ``pos_weight``.

    Args:
        logits: z, [N, C] in any dtype.
        targets: t, [N, C].
        weights: w, [C], of a class where it is present.
        smoothing: ε in [0, 1).
    """
    smooth = targets * (1.0 - smoothing) + smoothing / 2
    positive, negative = _log_sigmoids(logits)
    return -(weights * smooth * positive + (1 - smooth) * negative).sum(), _number(targets)


def binary_focal(logits: Tensor, targets: Tensor, weights: Tensor, gamma: float) -> Terms:
    """Return -Σ [w_c t (1 - p)^γ log p + (1 - t) p^γ log(1 - p)] with p = σ(z), counted as N · C (arXiv:1708.02002).

    Args:
        logits: z, [N, C] in any dtype.
        targets: t, [N, C].
        weights: w, [C], of a class where it is present.
        gamma: γ, 0 or more; 0 is binary cross-entropy.
    """
    positive, negative = _log_sigmoids(logits)
    present = weights * targets * (gamma * negative).exp() * positive
    absent = (1 - targets) * (gamma * positive).exp() * negative
    return -(present + absent).sum(), _number(targets)


def asymmetric(
    logits: Tensor, targets: Tensor, weights: Tensor, gamma_positive: float, gamma_negative: float, margin: float
) -> Terms:
    """Return the asymmetric loss, counted as N · C (arXiv:2009.14119, equations 5 to 7).

    -Σ [w_c t (1 - p)^γ+ log p + (1 - t) p_m^γ- log(1 - p_m)] with p = σ(z) and p_m = max(p - m, 0): absent classes that
    are recognised as such count for nothing.

    Args:
        logits: z, [N, C] in any dtype.
        targets: t, [N, C].
        weights: w, [C], of a class where it is present.
        gamma_positive: γ+, 0 or more.
        gamma_negative: γ-, 0 or more.
        margin: m in [0, 1).
    """
    positive, negative = _log_sigmoids(logits)
    shifted = (positive.exp() - margin).clamp(min=0.0)
    present = weights * targets * (gamma_positive * negative).exp() * positive
    focus = shifted.clamp(min=1e-12).pow(gamma_negative)
    # log(1 - p) itself where there is no margin: 1 - p in float32 is 0 for a confident mistake
    absent = torch.log1p(-shifted) if margin else negative
    return -(present + (1 - targets) * focus * absent).sum(), _number(targets)


def _exact(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are that already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_sigmoids(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log p and log(1 - p) of p = σ(z), both exact for large logits."""
    exact = _exact(logits)
    return F.logsigmoid(exact), F.logsigmoid(-exact)


def _number(targets: Tensor) -> Tensor:
    return torch.full((), float(targets.numel()), device=targets.device)

"""Ordered classes: a head of C - 1 thresholds instead of C classes (CORN, Shi, Cao, Raschka 2021, arXiv:2111.08851)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ordinal_logits(thresholds: Tensor) -> Tensor:
    """Return the classes' log probabilities [N, C] of threshold logits f, [N, C - 1].

    σ(f_k) is P(y > k | y ≥ k), so that log P(y = k) = Σ_{j<k} log σ(f_j) + log σ(-f_k): P(y > k) never rises with k,
    whatever the head has learned. They are normalised, so softmax leaves them as they are, and their cross-entropy is
    the paper's loss.
    """
    exact = thresholds.to(torch.promote_types(thresholds.dtype, torch.float32))
    passed = F.pad(F.logsigmoid(exact).cumsum(dim=1), (1, 0))  # log P(y ≥ k), [N, C]
    return passed + F.pad(F.logsigmoid(-exact), (0, 1))

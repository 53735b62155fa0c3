"""Blends of elements: they prune ΔW and elect signs element by element, one layer at a time.

By definition they act on the full ΔW (the factors' elements mean nothing by themselves, as any rotation of them gives
the same ΔW), and what they make has no low rank: it is cut to one after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionpeft.adapters.blend_table import Draws, Part, blending
from visionpeft.errors import AdapterError

ELECTIONS = ("total", "count")


@blending("magnitude_prune", of_elements=True, cuts=True, keeps_one=False)
def magnitude_prune(parts: list[Part], density: float = 0.5) -> Tensor:
    """``Σ wᵢ top(Dᵢ)``: of each Dᵢ the share ``density`` of its elements that are largest.

    Args:
        parts: the layer.
        density: share of the elements that stay, in (0, 1].
    """
    return torch.stack([part.weight * largest(part.dense(), density) for part in parts]).sum(0)


@blending("ties", of_elements=True, cuts=True, keeps_one=False)
def ties(parts: list[Part], density: float = 0.5, elect: str = "total") -> Tensor:
    """TIES: trim each Dᵢ, elect signs, mean of the elements that agree (Yadav et al. 2023, arXiv:2306.01708).

    The mean is of ``wᵢ Dᵢ`` over the adapters that agree, so weights stay strengths, the paper's λ.

    Args:
        parts: the layer.
        density: share of each Dᵢ's elements that stay, in (0, 1]; the paper's k is 0.2.
        elect: the sign of the "total" of the elements, as in the paper, or of the larger "count".
    """
    return agreeing([part.weight * largest(part.dense(), density) for part in parts], elect)


@blending("dare", of_elements=True, cuts=True, keeps_one=False)
def dare(parts: list[Part], draws: Draws, density: float = 0.5) -> Tensor:
    """DARE: drop elements of each Dᵢ at random, rescale the others, add up (Yu et al. 2023, arXiv:2311.03099).

    Args:
        parts: the layer.
        draws: its random numbers.
        density: the probability that an element stays, in (0, 1].
    """
    return torch.stack(_thinned(parts, draws, density)).sum(0)


@blending("dare_ties", of_elements=True, cuts=True, keeps_one=False)
def dare_ties(parts: list[Part], draws: Draws, density: float = 0.5, elect: str = "total") -> Tensor:
    """DARE's dropping, then TIES's election and mean (arXiv:2311.03099, arXiv:2306.01708).

    Args:
        parts: the layer.
        draws: its random numbers.
        density: the probability that an element stays, in (0, 1].
        elect: "total" or "count", as for TIES.
    """
    return agreeing(_thinned(parts, draws, density), elect)


@blending("della", of_elements=True, cuts=True, keeps_one=False)
def della(parts: list[Part], draws: Draws, density: float = 0.5, epsilon: float = 0.2, elect: str = "total") -> Tensor:
    """DELLA: drop small elements rather than large ones, rescale, elect, mean (Deep et al. 2024, arXiv:2406.11617).

    In a row of n elements the one of rank r (0 is the largest) is dropped with probability
    ``1 - density - epsilon/2 + epsilon/n · r`` and divided by the probability of staying.

    Args:
        parts: the layer.
        draws: its random numbers.
        density: the mean probability that an element stays.
        epsilon: how far the probabilities of the largest and the smallest are apart.
        elect: "total" or "count", as for TIES.

    Raises:
        AdapterError: some probability would not be in (0, 1].
    """
    if not (epsilon >= 0 and density - epsilon / 2 > 0 and density + epsilon / 2 <= 1):
        raise AdapterError(
            f"density={density}, epsilon={epsilon}: the blend 'della' keeps elements with probabilities from density -"
            " epsilon/2 to density + epsilon/2, which must lie in (0, 1]."
        )
    kept: list[Tensor] = []
    for index, part in enumerate(parts):
        change = part.dense()
        stays = keeping(change, density, epsilon)
        kept.append(part.weight * change * (draws.uniform(index, change.shape) < stays) / stays)
    return agreeing(kept, elect)


@blending("breadcrumbs", of_elements=True, cuts=True, keeps_one=False)
def breadcrumbs(parts: list[Part], density: float = 0.9, gamma: float = 0.01) -> Tensor:
    """Model Breadcrumbs: neither the largest nor the smallest elements, ``Σ wᵢ mid(Dᵢ)`` (arXiv:2312.06795).

    Args:
        parts: the layer.
        density: share of the elements that stay, in (0, 1].
        gamma: share of the largest that go; 1 - density - gamma is that of the smallest.

    Raises:
        AdapterError: density and gamma make more than 1.
    """
    if not (gamma >= 0 and density + gamma <= 1):
        raise AdapterError(f"density={density}, gamma={gamma}: both are shares of the elements, together 1 at most.")
    total = torch.zeros(parts[0].up.shape[0], parts[0].down.shape[1], dtype=torch.float64)
    for part in parts:
        change = part.dense()
        outliers = largest(change, gamma) if gamma else torch.zeros_like(change)
        total += part.weight * (largest(change, density + gamma) - outliers)
    return total


def largest(change: Tensor, share: float) -> Tensor:
    """The elements of largest magnitude, as many as this share of all, rounded; 0 elsewhere.

    Raises:
        AdapterError: the share is not in (0, 1].
    """
    check_share(share)
    count = round(share * change.numel())
    if count == change.numel():
        return change
    if count == 0:
        return torch.zeros_like(change)
    bound = change.abs().flatten().kthvalue(change.numel() - count + 1).values
    return torch.where(change.abs() >= bound, change, 0.0)


def keeping(change: Tensor, density: float, epsilon: float) -> Tensor:
    """DELLA's probabilities [m, n] that elements stay: by the ranks of their magnitudes within their rows."""
    ranks = change.abs().argsort(dim=1, descending=True).argsort(dim=1)
    return density + epsilon / 2 - epsilon / change.shape[1] * ranks.double()


def agreeing(changes: list[Tensor], elect: str = "total") -> Tensor:
    """The mean, element by element, of those changes whose sign is the elected one; 0 where there is none.

    Args:
        changes: each [m, n], with its weight.
        elect: "total": the sign of their sum; "count": the sign that more of them have.

    Raises:
        AdapterError: another election.
    """
    if elect not in ELECTIONS:
        raise AdapterError(f"elect={elect!r}: signs are elected by {' or by '.join(ELECTIONS)}.")
    votes = [change if elect == "total" else change.sign() for change in changes]
    elected = torch.stack(votes).sum(0).sign()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for change in changes:
        agrees = (change.sign() == elected) & (elected != 0)
        total += torch.where(agrees, change, 0.0)
        count += agrees
    return total / count.clamp_min(1)


def check_share(share: float) -> None:
    """Raise AdapterError for a share of elements outside (0, 1]."""
    if not 0 < share <= 1:
        raise AdapterError(f"density={share}: a share of the elements lies in (0, 1].")


def _thinned(parts: list[Part], draws: Draws, density: float) -> list[Tensor]:
    check_share(density)
    thinned: list[Tensor] = []
    for index, part in enumerate(parts):
        change = part.dense()
        thinned.append(part.weight * change * (draws.uniform(index, change.shape) < density) / density)
    return thinned

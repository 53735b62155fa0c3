"""Blends that are exact in low rank: from factors to factors, the full matrix is never formed.

Dᵢ is the ΔW of adapter i with its scale folded in, wᵢ its weight at the layer.
"""

from __future__ import annotations

from math import acos, sin

import torch
from torch import Tensor

from visionpeft.adapters.algebra import factor_svd
from visionpeft.adapters.blend_table import Factors, Part, blending
from visionpeft.errors import AdapterError

ROUNDING = 1e-7
"""Singular values below this part of the largest are rounding of float32."""
SIDES = ("both", "out", "in")


@blending("cat", full=True)
def cat(parts: list[Part]) -> Factors:
    """``Σ wᵢ Dᵢ`` by concatenating factors: ranks add up."""
    return _joined([(part.weight, part) for part in parts])


@blending("linear", full=True)
def linear(parts: list[Part]) -> Factors:
    """``Σ wᵢ Dᵢ``, the true sum, in the fewest ranks that hold it: as good as "cat", never larger."""
    down, up = cat(parts)
    if not len(down):
        return down, up
    u, values, vt = factor_svd(down, up)
    keep = values > ROUNDING * values[0]
    root = values[keep].sqrt()
    return root[:, None] * vt[keep], u[:, keep] * root


@blending("svd", cuts=True)
def svd(parts: list[Part]) -> Factors:
    """The best approximation of ``Σ wᵢ Dᵢ`` of a rank, by default the largest of the parts', or of an energy."""
    return cat(parts)


@blending("slerp", two=True, keeps_one=False)
def slerp(parts: list[Part]) -> Factors:
    """Spherical interpolation: on the arc from D₁ to D₂ at ``t = w₂ / (w₁ + w₂)``, times ``w₁ + w₂``.

    ``(sin((1-t)θ) D₁ + sin(tθ) D₂) / sin θ`` with θ the angle between D₁ and D₂ as vectors (Shoemake 1985); where they
    are parallel, or one is 0, the straight line.

    Raises:
        AdapterError: a weight below 0.
    """
    first, second = parts
    if first.weight < 0 or second.weight < 0:
        raise AdapterError("The blend 'slerp' goes from one adapter to another: its weights cannot be below 0.")
    total = first.weight + second.weight
    angle = _angle(first, second)
    if total == 0 or sin(angle) < 1e-6:
        return cat(parts)
    shares = [sin(part.weight / total * angle) / sin(angle) for part in parts]
    return _joined([(total * share, part) for share, part in zip(shares, parts, strict=True)])


@blending("orthogonal")
def orthogonal(parts: list[Part], side: str = "both") -> Factors:
    """``w₁ D₁ + Σ wᵢ (I - P) Dᵢ (I - Q)``: each adapter projected off those before it, which stay as they are.

    P and Q project on what the adapters before it write (columns of D) and read (rows of D). So neither reads what the
    other does, nor writes where it does.

    Args:
        parts: the layer.
        side: "both", or only "out" (columns) or "in" (rows). One side is enough for ⟨Dᵢ, Dⱼ⟩ = 0.

    Raises:
        AdapterError: another side.
    """
    if side not in SIDES:
        raise AdapterError(f"side={side!r}: the blend 'orthogonal' takes one of {', '.join(SIDES)}.")
    placed: list[tuple[float, Part]] = []
    columns, rows = parts[0].up[:, :0], parts[0].down[:0].mT
    for part in (part for part in parts if part.weight):
        up = _off(part.up, columns) if side != "in" else part.up
        down = _off(part.down.mT, rows).mT if side != "out" else part.down
        placed.append((part.weight, Part(part.weight, down, up)))
        own_columns, own_rows = subspaces(part.down, part.up)
        columns, rows = _span(columns, own_columns), _span(rows, own_rows)
    return _joined(placed) if placed else cat(parts)


@blending("subtract")
def subtract(parts: list[Part]) -> Factors:
    """``w₁ D₁ - Σ wᵢ Dᵢ``: a concept taken out of the first (Ilharco et al. 2022, arXiv:2212.04089)."""
    first, *others = parts
    return _joined([(first.weight, first), *((-part.weight, part) for part in others)])


@blending("negate", keeps_one=False)
def negate(parts: list[Part]) -> Factors:
    """``-Σ wᵢ Dᵢ``: the opposite, which makes a model forget what it learned (arXiv:2212.04089)."""
    return _joined([(-part.weight, part) for part in parts])


def subspaces(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases of what a layer writes [m, k] and reads [n, k]; k is the rank that ΔW really has.

    Args:
        down: [r, n].
        up: [m, r].
    """
    if not len(down):
        return up, down.mT
    u, values, vt = factor_svd(down, up)
    keep = values > ROUNDING * values[0]
    return u[:, keep], vt[keep].mT


def inner(first: Part, second: Part) -> float:
    """``⟨D₁, D₂⟩``, the sum of the products of their elements, from the factors alone."""
    return float(((first.up.mT @ second.up) * (first.down @ second.down.mT)).sum())


def _angle(first: Part, second: Part) -> float:
    lengths = (inner(first, first) * inner(second, second)) ** 0.5
    return acos(max(-1.0, min(1.0, inner(first, second) / lengths))) if lengths > 0 else 0.0


def _joined(weighted: list[tuple[float, Part]]) -> Factors:
    there = [(weight, part) for weight, part in weighted if weight] or [(0.0, _none(weighted[0][1]))]
    return torch.cat([part.down for _, part in there]), torch.cat([weight * part.up for weight, part in there], dim=1)


def _none(part: Part) -> Part:
    return Part(0.0, part.down[:0], part.up[:, :0])


def _off(vectors: Tensor, basis: Tensor) -> Tensor:
    return vectors - basis @ (basis.mT @ vectors)


def _span(first: Tensor, second: Tensor) -> Tensor:
    both = torch.cat([first, second], dim=1)
    u, values, _ = torch.linalg.svd(both, full_matrices=False)
    return u[:, values > ROUNDING]

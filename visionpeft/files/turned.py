"""ΔW of the methods that change the base's weights as a function of them: OFT, BOFT, GLoRA, (IA)³, DoRA by input.

No value of this package holds them as their files do, so they are read with the base at hand, as whole differences.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visionpeft.errors import FileFormatError

Parts = Mapping[str, Tensor]


def delta(kind: str, name: str, parts: Parts, weight: Tensor) -> Tensor:
    """Return ΔW of a module, in its weight's shape.

    Args:
        kind: "oft" (BOFT too), "glora" or "ia3".
        name: of the module, for messages.
        parts: suffix -> tensor.
        weight: the base's.

    Raises:
        FileFormatError: the tensors do not fit the weight.
    """
    try:
        return CHANGES[kind](parts, weight.float()).reshape(weight.shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise FileFormatError(f"'{name}' does not fit a weight of {list(weight.shape)}: another base's file") from error


def _ia3(parts: Parts, weight: Tensor) -> Tensor:
    """The vector is what is added to 1; it scales inputs or outputs, never the bias."""
    values = parts["weight"].float().flatten()
    axis = 1 if float(parts["on_input"].flatten()[0]) else 0
    return weight * values.reshape([-1 if dimension == axis else 1 for dimension in range(weight.ndim)])


def _glora(parts: Parts, weight: Tensor) -> Tensor:
    """``α/r (W A + B)``: A = a1 a2 and B = b1 b2; files from before May 2024 have them the other way round."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"].float().flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if (len(a2), len(b2)) == (weight.shape[1], len(weight)):  # the old layout; by chance only of full rank, the new one
        a1, a2, b1, b2 = a2, a1, b2, b1
    scale = float(parts["alpha"].flatten()[0]) / len(a2) if "alpha" in parts else 1.0
    within = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return scale * (within + (b1 @ b2).reshape(weight.shape))


def _orthogonal(parts: Parts, weight: Tensor) -> Tensor:
    """``R W − W`` with R orthogonal in blocks of outputs; four dimensions are BOFT's factors, one behind the other."""
    blocks = parts["oft_blocks"].float()
    rotations = _cayley(blocks, _limit(parts, weight))
    if blocks.ndim == 4:
        turned = weight
        for step, rotation in enumerate(rotations):
            turned = _butterfly(turned, rotation, 2**step * (blocks.shape[-1] // 2))
    else:
        parted = weight.reshape(blocks.shape[0], blocks.shape[1], -1)
        turned = torch.einsum("knm,kni->kmi", rotations, parted).reshape(weight.shape)
    if "rescale" in parts:
        turned = turned * parts["rescale"].float().reshape(-1, *[1] * (weight.ndim - 1))
    return turned - weight


CHANGES = {"ia3": _ia3, "glora": _glora, "oft": _orthogonal}
"""Kind of module -> its ΔW; BOFT is "oft" with four dimensions."""


def _limit(parts: Parts, weight: Tensor) -> float:
    """How long the skew matrices may be: the alpha of OFT is a limit for each output; 0 is none."""
    return float(parts["alpha"].flatten()[0]) * weight.shape[0] if "alpha" in parts else 0.0


def _cayley(blocks: Tensor, limit: float) -> Tensor:
    """``(I + Q)(I − Q)⁻¹`` of the skew part Q, shortened to the limit."""
    skew = blocks - blocks.mT
    length = float(skew.norm()) + 1e-8
    if 0 < limit < length:
        skew = skew * (limit / length)
    eye = torch.eye(skew.shape[-1])
    return torch.linalg.solve_ex(eye - skew, eye + skew, left=False)[0]


def _butterfly(weight: Tensor, rotation: Tensor, stride: int) -> Tensor:
    """Turn pairs of outputs that stand ``stride`` apart: bring them together, turn blocks, put them back."""
    rows = weight.reshape(weight.shape[0], -1)
    together = rows.reshape(-1, 2, stride, rows.shape[1]).transpose(1, 2).reshape(*rotation.shape[:2], -1)
    turned = torch.einsum("bij,bjn->bin", rotation, together)
    back = turned.reshape(-1, stride, 2, rows.shape[1]).transpose(1, 2)
    return back.reshape(weight.shape)


def dora(added: Tensor, magnitudes: Tensor, weight: Tensor, axis: int) -> Tensor:
    """ΔW of DoRA with a magnitude for each output (axis 0) or input (1): ``m (W + ΔV) / ‖W + ΔV‖ − W`` along it."""
    whole = weight.float() + added.reshape(weight.shape)
    length = whole.transpose(0, axis).flatten(1).norm(dim=1)
    ratio = magnitudes.float().flatten() / length
    return whole * ratio.reshape([-1 if dimension == axis else 1 for dimension in range(weight.ndim)]) - weight.float()

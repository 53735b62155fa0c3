"""What an adapter's tensors mean as numbers: ΔW in closed form, low-rank factors, and their exact compression.

Pure functions of tensors, differentiable, on any device. Shapes: a weight W is [out, in] (linear) or [out, in, kh, kw]
(convolution); flat(W) is [out, in·kh·kw]. ``down`` is [rank, in…] and ``up`` [out, rank…].
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from scipy.linalg import eigh
from torch import Tensor

from visionpeft.adapters.spec import (
    DoraSpec,
    FlatSpec,
    FullSpec,
    Ia3Spec,
    LohaSpec,
    LokrSpec,
    LoraSpec,
    OftSpec,
    PlacedSpec,
    RsLoraSpec,
    Spec,
    scale_of,
)
from visionpeft.errors import AdapterError

if TYPE_CHECKING:
    from visionpeft.adapters.archive import Adapter

PARAMETERS = (
    "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "oft_R.weight", "ia3_l",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "prompts",
)  # fmt: skip
DIFF = ".diff"  # full tuning's difference of a parameter: "component.path.weight.diff"
Parts = Mapping[str, Tensor]


def split_name(name: str) -> tuple[str, str]:
    """Return ("component.path", parameter) of a tensor's name; the parameter of a difference is "weight.diff".

    Raises:
        AdapterError: the name ends in no parameter of any method.
    """
    if name.endswith(DIFF):
        place, _, parameter = name.removesuffix(DIFF).rpartition(".")
        return place, parameter + DIFF
    for parameter in PARAMETERS:
        if name.endswith("." + parameter):
            return name[: -len(parameter) - 1], parameter
    raise AdapterError(
        f"Tensor '{name}' is no parameter of any method; the name ends in none of {', '.join(PARAMETERS)}."
    )


def modules(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """Group an adapter's tensors: "component.path" -> parameter -> tensor, in the order of the names."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for name in sorted(adapter.tensors):
        place, parameter = split_name(name)
        grouped.setdefault(place, {})[parameter] = adapter.tensors[name]
    return grouped


def deltas(adapter: Adapter, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return every ΔW of an adapter by "component.path", in its weight's shape; of full tuning, of what has a weight.

    Args:
        adapter: of any method.
        base: base weights by "component.path"; DoRA, OFT and (IA)³ need them.

    Raises:
        AdapterError: the base is needed and not given.
    """
    found: dict[str, Tensor] = {}
    for place, parts in modules(adapter).items():
        component, _, path = place.partition(".")
        if isinstance(adapter.specs[component], FullSpec) and "weight.diff" not in parts:
            continue  # a class token, a position embedding
        found[place] = delta(adapter.specs[component], parts, (base or {}).get(place), path=path)
    return found


def delta(spec: Spec, parts: Parts, base: Tensor | None = None, *, path: str = "") -> Tensor:
    """Return ΔW of one module, the scale folded in, in float32 or better.

    Args:
        spec: the component's spec.
        parts: the module's parameters by name.
        base: its base weight W; DoRA, OFT and (IA)³ need it.
        path: canonical module path, for ranks, alphas and kernels of single modules.

    Raises:
        AdapterError: the method needs the base weight and it is not given.
    """
    scale = scale_of(spec, path)
    if isinstance(spec, FullSpec):
        return _wide(parts["weight.diff"])
    if isinstance(spec, PlacedSpec):
        raise AdapterError(f"The method '{_method(spec)}' changes no weights, so it has no ΔW.")
    if isinstance(spec, LoraSpec | RsLoraSpec):
        return _lora(parts, scale, base)
    if isinstance(spec, LohaSpec | LokrSpec):
        flat = scale * (_hada(parts) if isinstance(spec, LohaSpec) else torch.kron(*_kron_factors(parts)))
        return flat.reshape(base.shape if base is not None else flat_shape(spec, path, flat))
    if base is None:
        raise AdapterError(
            f"The method '{_method(spec)}' changes the base weights themselves: give them with base=… (--base)."
        )
    weight = _wide(base)
    if isinstance(spec, DoraSpec):
        turned = weight + _lora(parts, scale, base)
        return _rows(parts["lora_magnitude_vector"].flatten() / turned.flatten(1).norm(dim=1), weight) * turned - weight
    if isinstance(spec, OftSpec):
        rotation = rotations(parts["oft_R.weight"], spec.neumann_terms)
        return _rotate(weight, rotation) - weight
    return weight * (ia3_factor(parts["ia3_l"], weight.ndim) - 1)


def bias_delta(spec: Spec, parts: Parts, bias: Tensor) -> Tensor | None:
    """Return Δb of one module, or None where the method leaves the bias alone: (IA)³ scales it, full tuning adds."""
    if isinstance(spec, FullSpec):
        return parts.get("bias.diff")
    if not isinstance(spec, Ia3Spec) or scales_input(parts["ia3_l"]):
        return None
    return _wide(bias) * (_wide(parts["ia3_l"]).flatten() - 1)


def scales_input(vector: Tensor) -> bool:
    """Whether an (IA)³ vector scales inputs: its shape is then [1, in]; [out, 1] and [1, out, 1, 1] scale outputs."""
    return vector.ndim == 2 and vector.shape[0] == 1 and vector.shape[1] != 1


def ia3_factor(vector: Tensor, dimensions: int) -> Tensor:
    """An (IA)³ vector in the shape that multiplies a weight with so many dimensions."""
    values = _wide(vector)
    if scales_input(vector):
        return values
    return values.reshape(-1, *[1] * (dimensions - 1))


def flat_shape(spec: FlatSpec, path: str, flat: Tensor) -> tuple[int, ...]:
    """The weight's shape of a ΔW [out, in·kh·kw]: [out, in] or, where the spec tells a kernel, [out, in, kh, kw]."""
    kernel = spec.kernels.get(path, ())
    return (flat.shape[0], flat.shape[1] // prod(kernel), *kernel)


def _lora(parts: Parts, scale: float, base: Tensor | None) -> Tensor:
    down, up = _wide(parts["lora_A.weight"]), _wide(parts["lora_B.weight"])
    shape = (up.shape[0], *down.shape[1:]) if base is None else base.shape
    return (scale * (up.flatten(1) @ down.flatten(1))).reshape(shape)


def _hada(parts: Parts) -> Tensor:
    return _hada_half(parts, "1") * _hada_half(parts, "2")


def _hada_half(parts: Parts, half: str) -> Tensor:
    first, second = _wide(parts[f"hada_w{half}_a"]), _wide(parts[f"hada_w{half}_b"])
    core = parts.get(f"hada_t{half}")
    if core is None:
        return first @ second
    return torch.einsum("ijkl,jr,ip->prkl", _wide(core), second, first).flatten(1)


def _kron_factors(parts: Parts) -> tuple[Tensor, Tensor]:
    return _kron_half(parts, "1"), _kron_half(parts, "2")


def _kron_half(parts: Parts, half: str) -> Tensor:
    whole = parts.get(f"lokr_w{half}")
    if whole is not None:
        return _wide(whole).flatten(1)
    first, second = _wide(parts[f"lokr_w{half}_a"]), _wide(parts[f"lokr_w{half}_b"])
    core = parts.get("lokr_t2") if half == "2" else None
    if core is None:
        return first @ second.flatten(1)
    return torch.einsum("ijkl,jr,ip->prkl", _wide(core), second, first).flatten(1).contiguous()  # as torch.kron wants


def rotations(vectors: Tensor, terms: int) -> Tensor:
    """Return R [blocks, b, b] of the upper triangles [blocks, b(b−1)/2], by Cayley's map as peft has it.

    The series ``I + 2Q + 2Q² + … + 2Qᵗ⁻² + Qᵗ⁻¹`` with t terms, near ``(I + Q)(I − Q)⁻¹``; t = 0 solves exactly, and
    then for ``(I − Q)(I + Q)⁻¹``.
    """
    skew = _skew(_wide(vectors))
    eye = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype).expand_as(skew)
    if terms == 0:
        return torch.linalg.solve_ex(eye + skew, eye - skew, left=False)[0]
    total, power = eye, eye
    for term in range(1, terms):
        power = power @ skew
        total = total + (1 if term == terms - 1 else 2) * power
    return total


def _skew(vectors: Tensor) -> Tensor:
    side = round((1 + (1 + 8 * vectors.shape[1]) ** 0.5) / 2)
    rows, columns = torch.triu_indices(side, side, 1, device=vectors.device)
    upper = vectors.new_zeros(vectors.shape[0], side * side).index_copy(1, rows * side + columns, vectors)
    square = upper.reshape(-1, side, side)
    return square - square.mT


def _rotate(weight: Tensor, rotation: Tensor) -> Tensor:
    blocks, side, _ = rotation.shape
    parted = weight.reshape(weight.shape[0], blocks, side)
    return torch.einsum("obk,bck->obc", parted, rotation).reshape(weight.shape)


def low_rank(spec: Spec, parts: Parts, *, path: str = "") -> tuple[Tensor, Tensor]:
    """Return exact factors (down, up) with ``flat(ΔW) = flat(up) flat(down)``, the scale folded into up.

    LoHa's rank is rank² (row-wise Khatri-Rao products), LoKr's is the product of its factors' ranks.

    Raises:
        AdapterError: the method is not low-rank by itself.
    """
    scale = scale_of(spec, path)
    if isinstance(spec, LoraSpec | RsLoraSpec):
        return _wide(parts["lora_A.weight"]), scale * _wide(parts["lora_B.weight"])
    if isinstance(spec, LohaSpec) and "hada_t1" not in parts:
        wide = {name: _wide(part) for name, part in parts.items()}
        up = torch.einsum("or,os->ors", wide["hada_w1_a"], wide["hada_w2_a"]).flatten(1)
        down = torch.einsum("ri,si->rsi", wide["hada_w1_b"], wide["hada_w2_b"]).flatten(0, 1)
        return down, scale * up
    if isinstance(spec, LohaSpec | LokrSpec):
        down, up = _kron_low_rank(parts) if isinstance(spec, LokrSpec) else thin(_hada(parts))
        return down, scale * up
    raise AdapterError(
        f"The method '{_method(spec)}' is not low-rank: convert it with to_lora(rank=… or energy=…, base=…)."
    )


def _kron_low_rank(parts: Parts) -> tuple[Tensor, Tensor]:
    first, second = (thin(factor) for factor in _kron_factors(parts))
    return torch.kron(first[0], second[0]), torch.kron(first[1], second[1])


def thin(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Exact factors (down, up) of a matrix [m, n] by its smaller side."""
    rows, columns = matrix.shape
    if rows <= columns:
        return matrix, torch.eye(rows, dtype=matrix.dtype, device=matrix.device)
    return torch.eye(columns, dtype=matrix.dtype, device=matrix.device), matrix


def compress(down: Tensor, up: Tensor, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the best factors (down, up) of lower rank; exact where nothing is cut. See `cut`.

    Raises:
        AdapterError: rank < 1 or energy outside (0, 1].
    """
    new_down, new_up, _ = cut(*factor_svd(down, up), rank, energy)
    return new_down.to(down.dtype), new_up.to(up.dtype)


def factor_svd(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [m, k], the singular values [k] and Vᵀ [k, n] of ``up down`` in float64, k = min(m, n, r).

    QR of both factors, SVD of the small core: the product itself is never formed.

    Args:
        down: [r, n].
        up: [m, r].
    """
    left, left_core = torch.linalg.qr(up.double())
    right, right_core = torch.linalg.qr(down.double().mT)
    u, values, vt = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    return left @ u, values, vt @ right.mT


def dense_svd(matrix: Tensor, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [m, k], the singular values [k] and Vᵀ [k, n] of a full matrix in float64; with a rank, the largest k.

    By the eigenvectors of the Gram matrix of the smaller side, of which only those that stay are computed: projecting
    on them is as good as the SVD to a part of about 1e-12 of the matrix's length, and several times faster.

    Args:
        matrix: [m, n].
        rank: how many are wanted at most.
        energy: with one given, all are computed, as their number is not known before.
    """
    if matrix.shape[0] > matrix.shape[1]:
        v, values, ut = dense_svd(matrix.mT, rank, energy)
        return ut.mT, values, v.mT
    wide, side = matrix.double(), matrix.shape[0]
    wanted = side if rank is None or energy is not None else min(rank, side)
    _, vectors = eigh((wide @ wide.mT).cpu().numpy(), subset_by_index=(side - wanted, side - 1))
    u = torch.from_numpy(vectors).flip(1).to(wide.device)
    rows = u.mT @ wide
    values = rows.norm(dim=1)
    return u, values, rows / values.clamp_min(torch.finfo(torch.float64).tiny)[:, None]


def cut(
    u: Tensor, values: Tensor, vt: Tensor, rank: int | None = None, energy: float | None = None
) -> tuple[Tensor, Tensor, float]:
    """Return factors (down [k, n], up [m, k]) of the first singular triplets, and the sum of squares that they keep.

    Args:
        u: [m, r].
        values: [r], descending.
        vt: [r, n].
        rank: keep so many singular values at most.
        energy: keep the fewest whose squares sum to this share of all, in (0, 1].

    Raises:
        AdapterError: rank < 1 or energy outside (0, 1].
    """
    check_cut(rank, energy)
    keep = _kept(values, rank, energy)
    root = values[:keep].sqrt()
    return root[:, None] * vt[:keep], u[:, :keep] * root, float(values[:keep].square().sum())


def check_cut(rank: int | None, energy: float | None) -> None:
    """Raise AdapterError for a rank below 1 or an energy outside (0, 1]."""
    if (rank is not None and rank < 1) or (energy is not None and not 0 < energy <= 1):
        raise AdapterError(f"rank={rank}, energy={energy}: a rank is at least 1, an energy in (0, 1].")


def _kept(values: Tensor, rank: int | None, energy: float | None) -> int:
    keep = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        share = (values.square().cumsum(0) / values.square().sum()).nan_to_num(1.0)  # of nothing, one is enough
        keep = min(keep, int((share < energy * (1 - 1e-12)).sum()) + 1)
    return keep


def as_lora(down: Tensor, up: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """LoRA parameters of factors for a weight of this shape; A [r, in, kh, kw], B [out, r, 1, 1] for convolutions."""
    rank, ones = down.shape[0], (1,) * (len(shape) - 2)
    if prod(shape[1:]) * rank != down.numel():
        raise AdapterError(f"Factors of shape {tuple(down.shape)} do not fit a weight of shape {shape}.")
    return {"lora_A.weight": down.reshape(rank, *shape[1:]), "lora_B.weight": up.reshape(-1, rank, *ones)}


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return _wide(values).reshape(-1, *[1] * (like.ndim - 1))


def _method(spec: Spec) -> str:
    return str(getattr(spec, "method", type(spec).__name__))

"""The table of blends, and what each of them is given: one layer of every adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from typing import TypeVar

import torch
from torch import Tensor

from visionpeft.adapters.algebra import cut, dense_svd, factor_svd, thin
from visionpeft.errors import AdapterError, did_you_mean

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Part:
    """One adapter at one layer, ``ΔW = up down``; of rank 0 where the adapter leaves the layer alone.

    Attributes:
        weight: how strongly it acts there.
        down: [r, n], float64.
        up: [m, r], float64.
    """

    weight: float
    down: Tensor
    up: Tensor

    def dense(self) -> Tensor:
        """ΔW as a full matrix [m, n], without the weight."""
        return self.up @ self.down


class Draws:
    """The random numbers of one layer: functions of (seed, layer, adapter), whatever else is blended.

    Args:
        seed: of the blend.
        place: the layer, "component.path".
    """

    def __init__(self, seed: int, place: str) -> None:
        self.seed, self.place = seed, place

    def uniform(self, adapter: int, shape: Sequence[int]) -> Tensor:
        """Return numbers from [0, 1) for the adapter in this position, float32; the same each time."""
        digest = sha256(f"{self.seed}/{self.place}/{adapter}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.rand(tuple(shape), generator=generator)


@dataclass(frozen=True)
class Layer:
    """A blended layer.

    Attributes:
        down: [r, n].
        up: [m, r].
        energy: ``‖ΔW‖²`` of what the blend is by definition, in the Frobenius norm.
        lost: the part of it that cutting to a rank took away.
    """

    down: Tensor
    up: Tensor
    energy: float
    lost: float


@dataclass(frozen=True)
class Blend:
    """One row of the table.

    Attributes:
        name: as in ``blend(method=…)``.
        make: ``make(parts, **options)``: exact factors, or the full matrix [m, n] of a blend of elements.
        of_elements: it works on the elements of ΔW, so a layer is formed in full, one at a time.
        cuts: without a rank or an energy, the result has the largest rank of its parts.
        keeps_one: the blend of one adapter at weight 1 is that adapter.
        two: it takes exactly two adapters.
        full: full tuning blends by it too, as it is a plain sum of ΔW.
    """

    name: str
    make: Callable[..., Factors | Tensor]
    of_elements: bool = False
    cuts: bool = False
    keeps_one: bool = True
    two: bool = False
    full: bool = False

    @property
    def options(self) -> list[str]:
        """What it can be told, beside rank and energy."""
        return [name for name in list(signature(self.make).parameters)[1:] if name != "draws"]

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return "draws" in signature(self.make).parameters

    def layer(
        self, parts: list[Part], draws: Draws, rank: int | None, energy: float | None, options: dict[str, object]
    ) -> Layer:
        """Return the blend of one layer, cut to a rank or an energy where one is asked for."""
        made = self.make(parts, **options, **({"draws": draws} if self.draws else {}))
        if self.cuts and rank is None and energy is None:
            rank = max(len(part.down) for part in parts)
        if isinstance(made, Tensor):
            return _cut_matrix(made, rank, energy)
        return _cut_factors(*made, rank, energy)


Maker = TypeVar("Maker", bound=Callable[..., "Factors | Tensor"])
BLENDS: dict[str, Blend] = {}


def blending(name: str, **traits: bool) -> Callable[[Maker], Maker]:
    """Enter a function in the table; ``traits`` are those of `Blend`.

    From the parts of one layer it makes exact factors (down, up), or the full matrix of a blend of elements; its
    keyword arguments are the blend's options, and ``draws`` among them are its random numbers.
    """

    def enter(make: Maker) -> Maker:
        BLENDS[name] = Blend(name, make, **traits)
        return make

    return enter


def row_of(method: str) -> Blend:
    """The row of a blend.

    Raises:
        AdapterError: there is none of that name; the nearest is named.
    """
    if method not in BLENDS:
        there = ", ".join(BLENDS)
        raise AdapterError(f"No blend is named '{method}'; there are {there}.{did_you_mean(method, BLENDS)}")
    return BLENDS[method]


def _cut_matrix(matrix: Tensor, rank: int | None, energy: float | None) -> Layer:
    total = float(matrix.square().sum())
    if energy is None and rank is not None and rank >= min(matrix.shape):
        return Layer(*thin(matrix), total, 0.0)
    down, up, kept = cut(*dense_svd(matrix, rank, energy), rank, energy)
    return Layer(down, up, total, max(0.0, total - kept))


def _cut_factors(down: Tensor, up: Tensor, rank: int | None, energy: float | None) -> Layer:
    if not len(down):
        return Layer(down.new_zeros(1, down.shape[1]), up.new_zeros(up.shape[0], 1), 0.0, 0.0)
    if rank is None and energy is None:
        return Layer(down, up, float(((up.mT @ up) * (down @ down.mT)).sum()), 0.0)
    u, values, vt = factor_svd(down, up)
    total = float(values.square().sum())
    new_down, new_up, kept = cut(u, values, vt, rank, energy)
    return Layer(new_down, new_up, total, max(0.0, total - kept))

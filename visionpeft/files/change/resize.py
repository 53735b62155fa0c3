"""An adapter at another rank: the best approximation of every layer, and how much of it that keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from visionpeft.adapters.algebra import delta, low_rank, modules
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.convert import to_lora
from visionpeft.adapters.methods import METHODS
from visionpeft.adapters.spec import AdapterSpec, RankSpec, rank_of
from visionpeft.errors import AdapterError


@dataclass(frozen=True)
class Resized:
    """An adapter at another rank.

    Attributes:
        adapter: plain LoRA of scale 1.
        ranks: "component.path" -> (rank before, 0 where its method has none; rank now).
        energies: "component.path" -> (‖ΔW‖² before, ‖ΔW‖² now); the second is a part of the first.
    """

    adapter: Adapter
    ranks: Mapping[str, tuple[int, int]]
    energies: Mapping[str, tuple[float, float]]

    @property
    def kept(self) -> float:
        """The share of Σ‖ΔW‖² that is kept."""
        before = sum(energy for energy, _ in self.energies.values())
        return min(sum(energy for _, energy in self.energies.values()) / before, 1.0) if before else 1.0

    @property
    def worst(self) -> tuple[str, float]:
        """The layer of which least is kept, and the share."""
        shares = {place: min(now / before, 1.0) if before else 1.0 for place, (before, now) in self.energies.items()}
        place = min(shares, key=lambda place: shares[place])
        return place, shares[place]


def resize(
    adapter: Adapter,
    rank: int | None = None,
    energy: float | None = None,
    base: Mapping[str, Tensor] | None = None,
    *,
    drop: bool = False,
) -> Resized:
    """Return an adapter cut to a rank, or to a share of every layer's energy, as plain LoRA.

    Low-rank methods are cut in their factors, without a large matrix (QR and the SVD of a small core); of the others
    ΔW is made first. Heads, trained words and metadata stay.

    Args:
        adapter: of any method that changes weights.
        rank: singular values to keep of a layer at most.
        energy: keep the fewest whose squares sum to this share of a layer's, in (0, 1].
        base: base weights by "component.path"; DoRA, OFT and (IA)³ need them.
        drop: leave out what LoRA cannot hold of full tuning.

    Raises:
        AdapterError: neither rank nor energy, values out of range, the base is needed, or there is no ΔW.
    """
    if rank is None and energy is None:
        raise AdapterError("Say how much to keep of every layer: rank=… or energy=… (0.95, for example).")
    resized = to_lora(adapter, rank, energy, base, drop=drop)
    before, after = modules(adapter), modules(resized)
    ranks: dict[str, tuple[int, int]] = {}
    energies: dict[str, tuple[float, float]] = {}
    for place, parts in after.items():
        component, _, path = place.partition(".")
        old, new = adapter.specs[component], resized.specs[component]
        ranks[place] = (rank_of(old, path) if isinstance(old, RankSpec) else 0, len(parts["lora_A.weight"]))
        energies[place] = (
            energy_of(old, before[place], path, (base or {}).get(place) if METHODS[old.method].needs_base else None),
            energy_of(new, parts, path),
        )
    return Resized(resized, ranks, energies)


def energy_of(spec: AdapterSpec, parts: Mapping[str, Tensor], path: str, base: Tensor | None = None) -> float:
    """‖ΔW‖² (Frobenius) of one module; of low-rank ones ``tr((UᵀU)(DDᵀ))`` from the factors, in float64."""
    if not METHODS[spec.method].low_rank:
        return float(delta(spec, parts, base, path=path).double().square().sum())
    down, up = (factor.double().flatten(1) for factor in low_rank(spec, parts, path=path))
    return max(float(((up.mT @ up) * (down @ down.mT)).sum()), 0.0)

"""Whether adapters get in each other's way: per layer, what they share, where they disagree, what a blend would lose.

Nothing here needs a model. With U, V the orthonormal bases of what a layer's ΔW writes and reads, the principal angles
between two adapters are those whose cosines are the singular values of ``U₁ᵀ U₂`` (Björck & Golub 1973).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import acos, degrees
from pathlib import Path

import torch
from torch import Tensor

from visionpeft import safefile
from visionpeft.adapters.blend import Given, layers, weighted
from visionpeft.adapters.blend_exact import subspaces
from visionpeft.adapters.blend_table import BLENDS, Draws, Part, row_of
from visionpeft.adapters.blend_weights import in_order
from visionpeft.errors import AdapterError

ROWS = 256
"""Signs are compared on so many evenly spaced rows of a layer at most."""
EXACT = tuple(name for name, row in BLENDS.items() if not row.of_elements)
"""Blends whose loss costs next to nothing; those of elements form each layer in full."""


@dataclass(frozen=True)
class Pair:
    """Two adapters at one layer.

    Attributes:
        first: an adapter's name.
        second: the other's.
        written: overlap of what they write, the mean of cos² of the principal angles, in [0, 1].
        read: overlap of what they read, in [0, 1].
        angle: the smallest principal angle of the two kinds, in degrees.
        conflict: share of what they have in common, element by element, in which their signs differ, in [0, 1]; 0.5 is
            chance.
        ratio: ``‖w₁ΔW₁‖ / ‖w₂ΔW₂‖``.
    """

    first: str
    second: str
    written: float
    read: float
    angle: float
    conflict: float
    ratio: float


@dataclass(frozen=True)
class LayerReport:
    """One layer that at least two adapters change.

    Attributes:
        place: "component.path".
        norms: adapter -> ``‖wΔW‖``.
        pairs: every two adapters that are both there.
        energies: blend -> ``‖ΔW‖²`` of its exact result.
        lost: blend -> share of it that the asked rank takes away, in [0, 1].
    """

    place: str
    norms: dict[str, float]
    pairs: list[Pair]
    energies: dict[str, float]
    lost: dict[str, float]


@dataclass(frozen=True)
class Interference:
    """What several adapters do to each other.

    Attributes:
        rank: that the blends were cut to.
        layers: in the model's order.
        advice: one sentence.
    """

    rank: int
    layers: list[LayerReport]
    advice: str

    def mean(self, figure: str) -> float:
        """The mean of a figure of `Pair` over layers and pairs, each counting as much as its smaller norm squared."""
        pairs = [(pair, layer.norms) for layer in self.layers for pair in layer.pairs]
        sizes = [min(norms[pair.first], norms[pair.second]) ** 2 for pair, norms in pairs]
        values = [getattr(pair, figure) * size for (pair, _), size in zip(pairs, sizes, strict=True)]
        return sum(values) / (sum(sizes) or 1.0)

    def lost(self, method: str) -> float:
        """The share of a blend's ``‖ΔW‖²`` over all layers that the rank takes away."""
        total = sum(layer.energies[method] for layer in self.layers)
        return sum(layer.energies[method] * layer.lost[method] for layer in self.layers) / (total or 1.0)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, beside and then renamed."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        safefile.write_atomically(path, [text.encode()])
        return Path(path)


def interference(
    adapters: Given,
    rank: int,
    methods: Sequence[str] = EXACT,
    seed: int = 0,
    base: Mapping[str, Tensor] | None = None,
) -> Interference:
    """Compare adapters layer by layer, as strong as they are to be blended.

    Args:
        adapters: name -> (adapter, weight), as for `blend`; two or more.
        rank: that blends are cut to.
        methods: blends whose loss is wanted, with their own defaults; those of exactly two adapters are left out where
            there are more.
        seed: for those that draw random numbers.
        base: base weights by "component.path", for DoRA, OFT and (IA)³.

    Raises:
        AdapterError: fewer than two adapters, none of whose layers are shared, or an unknown blend.
    """
    if len(adapters) < 2:
        raise AdapterError("Interference is between adapters: give at least two.")
    rows = [row for row in map(row_of, methods) if not row.two or len(adapters) == 2]
    found: dict[str, LayerReport] = {}
    for place, _, parts in layers(weighted(adapters), base or {}, cut=True):
        there = {name: part for name, part in zip(adapters, parts, strict=True) if len(part.down) and part.weight}
        if len(there) > 1:
            made = {row.name: row.layer(parts, Draws(seed, place), rank, None, {}) for row in rows}
            found[place] = LayerReport(
                place,
                {name: _norm(part) for name, part in there.items()},
                [pair_of(one, there[one], two, there[two]) for one, two in combinations(there, 2)],
                {name: layer.energy for name, layer in made.items()},
                {name: layer.lost / layer.energy if layer.energy else 0.0 for name, layer in made.items()},
            )
    if not found:
        raise AdapterError(f"No layer is changed by two of {', '.join(adapters)}: they cannot get in each other's way.")
    report = Interference(rank, [found[place] for place in in_order(found)], "")
    return Interference(rank, report.layers, advice(report))


def pair_of(first: str, one: Part, second: str, two: Part) -> Pair:
    """Compare two adapters at one layer."""
    bases = [subspaces(part.down, part.up) for part in (one, two)]
    written, out = _overlap(bases[0][0], bases[1][0])
    read, into = _overlap(bases[0][1], bases[1][1])
    ratio = _norm(one) / max(_norm(two), 1e-30)
    return Pair(first, second, written, read, min(out, into), _conflict(one, two), ratio)


def advice(report: Interference) -> str:
    """One sentence on what the figures say to do."""
    ratio, (strong, weak) = _strongest(report)
    shared, conflict = max(report.mean("written"), report.mean("read")), report.mean("conflict")
    lost = report.lost("svd") if "svd" in report.layers[0].lost else 0.0
    kept = f"cut to rank {report.rank}, 'svd' keeps {1 - lost:.1%} of the sum"
    if ratio > 3:
        return f"'{strong}' is {ratio:.1f} times as strong as '{weak}' and will drown it: lower its weight ({kept})."
    if conflict > 0.6:
        against = f"They push against each other ({conflict:.0%} of what they share has opposite signs)"
        return f"{against}: lower one where the map is dark, or blend with 'orthogonal' ({kept})."
    if shared > 0.3:
        same = f"They use the same directions (overlap {shared:.0%}) and mostly agree"
        return f"{same}, so a sum overshoots: lower both weights or use 'slerp' ({kept})."
    if lost > 0.1:
        return f"They hardly touch each other, but {kept}: give a higher rank, or take 'cat', which loses nothing."
    return f"They hardly touch each other (overlap {shared:.0%}): add them as they are ({kept})."


def _strongest(report: Interference) -> tuple[float, tuple[str, str]]:
    energies: dict[str, float] = {}
    for layer in report.layers:
        for name, norm in layer.norms.items():
            energies[name] = energies.get(name, 0.0) + norm**2
    strong, weak = max(energies, key=energies.__getitem__), min(energies, key=energies.__getitem__)
    return (energies[strong] / max(energies[weak], 1e-30)) ** 0.5, (strong, weak)


def _norm(part: Part) -> float:
    squares = ((part.up.mT @ part.up) * (part.down @ part.down.mT)).sum()
    return abs(part.weight) * float(squares.clamp_min(0).sqrt())


def _overlap(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The mean of cos² over the smaller subspace, and the smallest principal angle in degrees."""
    if not first.shape[1] or not second.shape[1]:
        return 0.0, 90.0
    cosines = torch.linalg.svdvals(first.mT @ second).clamp(0, 1)
    return float(cosines.square().mean()), degrees(acos(float(cosines[0])))


def _conflict(one: Part, two: Part) -> float:
    rows = torch.linspace(0, one.up.shape[0] - 1, min(ROWS, one.up.shape[0])).round().long()
    first, second = (part.weight * part.up[rows] @ part.down for part in (one, two))
    common = torch.minimum(first.abs(), second.abs())
    total = float(common.sum())
    return float(common[first * second < 0].sum()) / total if total else 0.0

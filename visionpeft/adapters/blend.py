"""Several adapters made one, without a model: on ΔW, never on factors apart, as (ΣA)(ΣB) is not ΣAB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionpeft.adapters import blend_elements, blend_exact  # noqa: F401  # pyright: ignore[reportUnusedImport] - fill the table
from visionpeft.adapters.algebra import as_lora, check_cut, modules
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.blend_table import BLENDS, Blend, Draws, Layer, Part, row_of
from visionpeft.adapters.blend_weights import BlendWeight, heads_weight, weights_by_place
from visionpeft.adapters.convert import is_low_rank, layer_factors
from visionpeft.adapters.spec import AdapterSpec, FullSpec, LoraSpec, PlacedSpec, ProbeSpec
from visionpeft.adapters.sums import Weighted, full_components, heads_of, summed, without
from visionpeft.errors import AdapterError, did_you_mean

Given = Mapping[str, tuple[Adapter, BlendWeight]]


def blend(
    adapters: Given,
    method: str = "cat",
    rank: int | None = None,
    seed: int = 0,
    *,
    energy: float | None = None,
    base: Mapping[str, Tensor] | None = None,
    **params: Any,
) -> Adapter:
    """Return one adapter of several, as plain LoRA of scale 1: float64 layer by layer, stored in float32.

    LoRA, rsLoRA, LoHa and LoKr blend with one another as they are, at any ranks. What remains of ΔW after a cut to a
    rank is told by the result's ``metadata.extra["blend_energy_kept"]``. Full tuning blends with full tuning by "cat"
    and "linear". Equal linear heads with the same labels become their mean by weight.

    Args:
        adapters: name -> (adapter, weight); a weight is a number, a gradient over the depth such as ``[0, 1, 0]``, or a
            table of these by component, block or layer, in which the longest dotted prefix wins and "*" is the rest.
        method: a name in `BLENDS`.
        rank: of the result at most. By default that of the exact sum for the exact blends, the largest of the parts'
            for "svd" and the blends of elements.
        seed: for the blends that draw random numbers; the draws of a layer depend on nothing else.
        energy: keep in each layer the fewest ranks that hold this share of ``‖ΔW‖²``, in (0, 1].
        base: base weights by "component.path", for DoRA, OFT and (IA)³; `AdapterManager.base_weights` gives them.
        params: what the blend itself takes ("density" for "ties").

    Raises:
        AdapterError: none given, an unknown blend or parameter, a weight that fits no layer, adapters of different
            bases, one word in two of them, different heads, or a method that needs the base, which is not given.
    """
    row = row_of(method)
    _check(row, adapters, params, rank, energy)
    (first, weight), *more = adapters.values()
    if not more and weight == 1 and rank is None and energy is None and row.keeps_one and not params:
        return first
    placed = weighted(adapters)
    full = full_components(placed)
    _check_full(full, row, rank is not None or energy is not None)
    rest = without(placed, full)
    made = _Sum()
    for place, shape, parts in layers(rest, base or {}, cut=rank is not None or energy is not None):
        made.add(place, shape, row.layer(parts, Draws(seed, place), rank, energy, params))
    specs: dict[str, AdapterSpec] = {part: _spec(part, made.ranks, rest) for part in _components(rest)}
    for part in full:
        specs[part], differences = summed(placed, part)
        made.tensors |= differences
    heads, headed = heads_of(placed)
    told = _told(row, adapters, params, seed) | {"blend_energy_kept": f"{made.kept:.6f}"}
    return Adapter(specs, made.tensors, heads, _metadata(adapters, headed, told))


def layers(
    adapters: Weighted, base: Mapping[str, Tensor], *, cut: bool
) -> Iterator[tuple[str, tuple[int, ...], list[Part]]]:
    """Yield (place, weight's shape, one part of each adapter) of every layer that any of them changes, by name.

    One layer at a time is made, in float64, so that no more than one is ever held.

    Args:
        adapters: name -> (adapter, its weight at each place).
        base: base weights by "component.path".
        cut: whether the result is cut, so that what has no low rank may take part.

    Raises:
        AdapterError: shapes that differ, or a method that has no ΔW in low rank.
    """
    found = {name: modules(adapter) for name, (adapter, _) in adapters.items()}
    for place in sorted({place for places in found.values() for place in places}):
        shape: tuple[int, ...] = ()
        there: dict[str, Part] = {}
        for name, (adapter, weights) in adapters.items():
            if place in found[name]:
                down, up, own = _factors(name, adapter.specs, place, found[name][place], base, cut=cut)
                if shape not in ((), own):
                    raise AdapterError(f"'{place}' has shape {own} in '{name}' and {shape} in another adapter.")
                shape = own
                there[name] = Part(weights[place], down.double(), up.double())
        some = next(iter(there.values()))
        nothing = Part(0.0, some.down[:0], some.up[:, :0])
        yield place, shape, [there.get(name, nothing) for name in adapters]


@dataclass
class _Sum:
    """What has been blended so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    energy: float = 0.0
    lost: float = 0.0

    def add(self, place: str, shape: tuple[int, ...], layer: Layer) -> None:
        named = as_lora(layer.down.float(), layer.up.float(), shape)
        self.tensors |= {f"{place}.{key}": tensor.contiguous() for key, tensor in named.items()}
        self.ranks[place] = len(layer.down)
        self.energy += layer.energy
        self.lost += layer.lost

    @property
    def kept(self) -> float:
        return 1 - self.lost / self.energy if self.energy else 1.0


def _factors(
    name: str,
    specs: Mapping[str, AdapterSpec],
    place: str,
    parts: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    *,
    cut: bool,
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    component, _, path = place.partition(".")
    spec = specs[component]
    wide = {key: part.detach().double() for key, part in parts.items()}
    try:
        _check_method(spec, cut=cut)
        return layer_factors(spec, place, path, wide, base)
    except AdapterError as error:
        raise AdapterError(f"Adapter '{name}' of method '{spec.method}' cannot be blended as it is: {error}") from None


def _check_method(spec: AdapterSpec, *, cut: bool) -> None:
    if isinstance(spec, PlacedSpec):
        raise AdapterError(f"The method '{spec.method}' changes no weights, so there is no ΔW that LoRA could hold.")
    if not is_low_rank(spec) and not cut:
        raise AdapterError(
            f"The method '{spec.method}' has no exact low-rank form: give base=… and rank=… or energy=…"
            " (--base, --rank, --energy)."
        )


def weighted(adapters: Given) -> dict[str, tuple[Adapter, Mapping[str, float]]]:
    """Adapters with their weights at each of their layers and heads, as `layers` takes them.

    Raises:
        AdapterError: a weight that fits no layer; see `weights_by_place`.
    """
    own = {name: list(modules(adapter)) for name, (adapter, _) in adapters.items()}
    everywhere = {place for places in own.values() for place in places}
    found: dict[str, tuple[Adapter, Mapping[str, float]]] = {}
    for name, (adapter, weight) in adapters.items():
        heads = list(adapter.metadata.head_modules)
        weights = weights_by_place(name, weight, own[name], everywhere, heads)
        found[name] = adapter, weights | {head: heads_weight(name, weight, head) for head in heads}
    return found


def _check(row: Blend, adapters: Given, options: Mapping[str, Any], rank: int | None, energy: float | None) -> None:
    if not adapters:
        raise AdapterError("Nothing to blend; give at least one adapter.")
    if row.two and len(adapters) != 2:
        raise AdapterError(f"The blend '{row.name}' is of exactly two adapters, not {len(adapters)}.")
    for name in options:
        if name not in row.options:
            takes = ", ".join(row.options) or "no parameters"
            raise AdapterError(f"The blend '{row.name}' takes {takes}, not '{name}'.{did_you_mean(name, row.options)}")
    check_cut(rank, energy)
    _check_bases(adapters)


def _check_full(full: list[str], row: Blend, cut: bool) -> None:
    if full and not row.full:
        able = " or ".join(f"'{name}'" for name, other in BLENDS.items() if other.full)
        raise AdapterError(f"The blend '{row.name}' is of low-rank factors; full tuning blends with {able}.")
    if full and cut:
        raise AdapterError("Full tuning has no rank to cut to: blend without a rank, then use to_lora(rank=…).")


def _components(adapters: Weighted) -> list[str]:
    return list(dict.fromkeys(component for adapter, _ in adapters.values() for component in adapter.specs))


def _spec(component: str, ranks: Mapping[str, int], adapters: Weighted) -> LoraSpec | ProbeSpec:
    own = {place.partition(".")[2]: rank for place, rank in ranks.items() if place.partition(".")[0] == component}
    specs = [adapter.specs[component] for adapter, _ in adapters.values() if component in adapter.specs]
    specs = [spec for spec in specs if not isinstance(spec, ProbeSpec)]
    if not specs:
        return ProbeSpec()
    same = all(spec.targets == specs[0].targets for spec in specs) and not isinstance(specs[0], FullSpec)
    most = max(own.values(), default=1)
    return LoraSpec(
        targets=specs[0].targets if same else tuple(own),
        rank=most,
        rank_pattern={path: rank for path, rank in own.items() if rank != most},
    )


def _check_bases(adapters: Given) -> None:
    for key, what in (("family", "families"), ("base_hash", "bases")):
        there = {name: str(getattr(adapter.metadata, key)) for name, (adapter, _) in adapters.items()}
        known = {name: value for name, value in there.items() if value}
        if len(set(known.values())) > 1:
            told = ", ".join(f"'{name}': {value[:12]}" for name, value in known.items())
            raise AdapterError(f"Adapters of different {what} cannot be blended ({told}).")


def _told(row: Blend, adapters: Given, options: Mapping[str, Any], seed: int) -> dict[str, str]:
    """What the result says of how it was made."""
    chosen = [f"{name}={value}" for name, value in options.items()] + ([f"seed={seed}"] if row.draws else [])
    weights = [
        f"{name}={weight:g}" if isinstance(weight, int | float) else f"{name}={weight}"
        for name, (_, weight) in adapters.items()
    ]
    return {"blend": ", ".join(weights), "blend_method": " ".join([row.name, *chosen])}


def _metadata(adapters: Given, headed: Adapter | None, told: dict[str, str]) -> AdapterMetadata:
    first = next(iter(adapters.values()))[0].metadata
    words = sorted({word for adapter, _ in adapters.values() for word in adapter.metadata.trigger_words})
    return AdapterMetadata(
        family=next((a.metadata.family for a, _ in adapters.values() if a.metadata.family), ""),
        base=first.base,
        base_hash=next((a.metadata.base_hash for a, _ in adapters.values() if a.metadata.base_hash), ""),
        trigger_words=tuple(words),
        heads=dict(headed.metadata.heads) if headed else _told_alike(adapters),
        head_modules=dict(headed.metadata.head_modules) if headed else {},
        extra=told,
    )


def _told_alike(adapters: Given) -> dict[str, Any]:
    """What adapters without heads tell of their training, as the language of speech, where all that do say the same."""
    told = [one.metadata.heads for one, _ in adapters.values() if one.metadata.heads and not one.metadata.head_modules]
    first = told[0] if told else {}
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in told)}

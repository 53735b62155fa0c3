"""How strongly each adapter acts: what `activate` is given, as one number for each adapted layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from visionpeft.errors import AdapterError, did_you_mean

LayerWeights = float | Mapping[str, float]
Weights = str | Sequence[str] | Mapping[str, LayerWeights]
REST = "*"


def read_weights(weights: Weights, names: Sequence[str]) -> dict[str, LayerWeights]:
    """Return the weights by adapter name; a name or a list of names means weight 1.

    Raises:
        AdapterError: an unknown adapter, with the nearest name.
    """
    if isinstance(weights, str):
        weights = [weights]
    table: dict[str, LayerWeights] = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0)
    for name in table:
        check_name(name, names)
    return table


def check_name(name: str, names: Sequence[str]) -> None:
    """Raise AdapterError for a name that no adapter has."""
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there are none"
        raise AdapterError(f"No adapter is named '{name}'; {there}.{did_you_mean(name, names)}")


def layer_weights(name: str, weight: LayerWeights, places: Iterable[str]) -> dict[str, float]:
    """Return the weight of each of an adapter's places ("component.path"): the longest dotted prefix wins.

    Args:
        name: the adapter's name, for messages.
        weight: one number, or prefix -> number; "*" stands for all that no prefix names.
        places: the layers that the adapter has.

    Raises:
        AdapterError: a prefix names none of the places, a place is named by no prefix, or a weight is not finite.
    """
    places = list(places)
    table = dict(weight) if isinstance(weight, Mapping) else {REST: weight}
    for prefix, value in table.items():
        check_weight(name, prefix, value, places)
    return {place: float(table[prefix_at(name, place, table)]) for place in places}


def check_weight(name: str, prefix: str, value: float, places: list[str]) -> None:
    """Raise AdapterError for a prefix that covers none of an adapter's places, or a weight that is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise AdapterError(f"Adapter '{name}': the weight of '{prefix}' is {value!r}; give a finite number.")
    if prefix != REST and not any(covers(prefix, place) for place in places):
        prefixes = {".".join(place.split(".")[:end]) for place in places for end in range(1, place.count(".") + 2)}
        parts = ", ".join(sorted({place.partition(".")[0] for place in places}))
        raise AdapterError(
            f"Adapter '{name}' has nothing at '{prefix}'; it is in {parts}.{did_you_mean(prefix, prefixes)}"
        )


def prefix_at(name: str, place: str, table: Mapping[str, object]) -> str:
    """Return the key of a table of weights that says how strong an adapter is at a place: the longest that covers it.

    Raises:
        AdapterError: there is none, and no "*" either.
    """
    covering = [prefix for prefix in table if covers(prefix, place)]
    if covering:
        return max(covering, key=len)
    if REST in table:
        return REST
    part = place.partition(".")[0]
    raise AdapterError(f"Adapter '{name}': no weight for '{place}'; add '{part}' or '{REST}' for all the rest.")


def covers(prefix: str, place: str) -> bool:
    """Whether a dotted prefix is a place or a part of the model that it is in."""
    return place == prefix or place.startswith(prefix + ".")

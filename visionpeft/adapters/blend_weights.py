"""How strongly each adapter goes into a blend, layer by layer: numbers, prefixes, and gradients over the depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from visionpeft.adapters.weights import REST, check_weight, covers, prefix_at
from visionpeft.errors import AdapterError

Gradient = Sequence[float]
BlendWeight = float | Gradient | Mapping[str, float | Gradient]

STAGES = (
    ("conv_in", "embeddings", "embed_tokens", "embed_positions", "time_embedding", "add_embedding", "backbone"),
    ("input_projection", "input_proj"),
    ("down_blocks", "encoder"),
    ("mid_block",),
    ("up_blocks", "decoder"),
    ("downsamplers", "upsamplers"),
    ("pooler", "visual_projection", "text_projection", "conv_out", "proj_out", "classifier", "lm_head"),
    ("class_labels_classifier", "bbox_predictor"),
)
"""Parts of models from the input to the output; what is not here stands in the middle, in the order of the names."""

_MIDDLE = 3
_STAGE = {name: stage for stage, names in enumerate(STAGES) for name in names}
_PAIRS = {"resnets": 0, "attentions": 1}  # the layers of a diffusion block: resnet 0, attention 0, resnet 1, …
_CONTAINER = re.compile(r"\w+s|layer\w*|block|stage")  # what numbers blocks: "layers.3", but not "net.0" or "to_out.0"


def weights_by_place(
    name: str, weight: BlendWeight, places: Iterable[str], all_places: Iterable[str], heads: Iterable[str] = ()
) -> dict[str, float]:
    """Return the weight of each of an adapter's places.

    A gradient ``[w₀, …, wₖ]`` is spread over the depth of what its prefix covers, from the first block to the last in
    the model's order, and straight between its numbers; all layers of a block weigh the same. Under "*", or without a
    prefix, it goes over each component by itself.

    Args:
        name: the adapter's name, for messages.
        weight: a number, a gradient, or prefix -> one of them; the longest dotted prefix wins, "*" is the rest.
        places: where the adapter has something, "component.path".
        all_places: where any adapter of the blend has something: the depth is theirs, the same for each.
        heads: where it has heads, which a prefix may name too.

    Raises:
        AdapterError: a prefix covers none of the places, a place is under none, or a weight is no finite number.
    """
    places = list(places)
    table = dict(weight) if isinstance(weight, Mapping) else {REST: weight}
    for prefix, value in table.items():
        _check(name, prefix, value, [*places, *heads])
    depths = {prefix: _depths(prefix, all_places) for prefix, value in table.items() if isinstance(value, Sequence)}
    return {place: _at(table, prefix_at(name, place, table), depths, place) for place in places}


def spread(gradient: Gradient, depth: float) -> float:
    """The value of a gradient at a depth in [0, 1]: straight lines between its numbers, which are equally far apart."""
    if len(gradient) == 1:
        return float(gradient[0])
    position = depth * (len(gradient) - 1)
    before = min(int(position), len(gradient) - 2)
    return gradient[before] + (position - before) * (gradient[before + 1] - gradient[before])


def block_of(place: str) -> str:
    """The block that a layer belongs to: its path up to the last numbered container, else the path itself.

    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q" -> "unet.mid_block.attentions.0.transformer_blocks.0"
    """
    parts = place.split(".")
    ends = [i + 1 for i in range(1, len(parts)) if parts[i].isdecimal() and _CONTAINER.fullmatch(parts[i - 1])]
    return ".".join(parts[: max(ends, default=len(parts))])


def in_order(places: Iterable[str]) -> list[str]:
    """Places from the input of the model to its output, as far as their names tell."""
    return sorted(places, key=_order)


def heads_weight(name: str, weight: BlendWeight, place: str) -> float:
    """The weight of what has no depth, such as a head: of a gradient the mean of its numbers."""
    table = dict(weight) if isinstance(weight, Mapping) else {REST: weight}
    value = table[prefix_at(name, place, table)]
    return sum(value) / len(value) if isinstance(value, Sequence) else float(value)


def _at(
    table: Mapping[str, float | Gradient], prefix: str, depths: Mapping[str, dict[str, float]], place: str
) -> float:
    value = table[prefix]
    return spread(value, depths[prefix][place]) if isinstance(value, Sequence) else float(value)


def _check(name: str, prefix: str, value: float | Gradient, places: list[str]) -> None:
    if isinstance(value, str) or (isinstance(value, Sequence) and not value):
        raise AdapterError(f"Adapter '{name}': the weight of '{prefix}' is {value!r}; give a number or several.")
    for number in value if isinstance(value, Sequence) else [value]:
        check_weight(name, prefix, number, places)


def _depths(prefix: str, places: Iterable[str]) -> dict[str, float]:
    """The depth in [0, 1] of every place under a prefix; of a single block 1/2."""
    groups: dict[str, list[str]] = {}
    for place in places:
        if prefix == REST or covers(prefix, place):
            groups.setdefault(place.partition(".")[0], []).append(place)
    found: dict[str, float] = {}
    for group in groups.values():
        blocks = list(dict.fromkeys(block_of(place) for place in in_order(group)))
        depth = {block: i / (len(blocks) - 1) if len(blocks) > 1 else 0.5 for i, block in enumerate(blocks)}
        found |= {place: depth[block_of(place)] for place in group}
    return found


def _order(place: str) -> list[tuple[int, int, str]]:
    keys: list[tuple[int, int, str]] = []
    parts = place.split(".")
    for part, following in zip(parts, [*parts[1:], ""], strict=True):
        if part in _PAIRS and following.isdecimal():
            keys.append((_MIDDLE, int(following), str(_PAIRS[part])))
        elif part.isdecimal():
            keys.append((_MIDDLE, int(part), ""))
        else:
            keys.append((_STAGE.get(part, _MIDDLE), 0, part))
    return keys

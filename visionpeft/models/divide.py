"""An adapter of a layer that was one and is several now, as adapters of each: its rows are theirs, in order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec
from visionpeft.errors import AdapterError

Divided = tuple[str, tuple[str, ...]]
"""A regular expression of how a former layer's path ends, and what the paths of the present ones have there."""

_ROWS = ("lora_B.weight", "lora_magnitude_vector", "hada_w1_a", "hada_w2_a", "weight.diff", "bias.diff")
_WHOLE = ("lora_A.weight", "hada_w1_b", "hada_w2_b", "oft_R.weight")
_BY_PATH = ("rank_pattern", "alpha_pattern", "kernels")


def divided(adapter: Adapter, tables: Mapping[str, tuple[Divided, ...]]) -> Adapter:
    """Return the adapter with every tensor of a divided layer shared out among the present ones.

    What a method adds to an output depends on that output's row of its factors alone, so this is exact; the Kronecker
    factors of LoKr have no such rows.

    Args:
        adapter: of any version of the library.
        tables: component -> its divided layers.

    Raises:
        AdapterError: a tensor cannot be shared out.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in adapter.tensors.items():
        component, _, name = key.partition(".")
        names = _present(name, tables.get(component, ()))
        shares = [tensor] if len(names) == 1 else _shares(key, tensor, len(names))
        tensors |= {f"{component}.{one}": share for one, share in zip(names, shares, strict=True)}
    specs = {part: _spec(spec, tables.get(part, ())) for part, spec in adapter.specs.items()}
    return replace(adapter, specs=specs, tensors=tensors)


def _present(name: str, table: Iterable[Divided]) -> tuple[str, ...]:
    for pattern, ends in table:
        if re.search(pattern, name):
            return tuple(re.sub(pattern, end, name) for end in ends)
    return (name,)


def _shares(key: str, tensor: Tensor, count: int) -> list[Tensor]:
    inputs = key.endswith(_WHOLE) or (key.endswith("ia3_l") and tensor.shape[0] == 1)
    if inputs:
        return [tensor.clone() for _ in range(count)]
    if not key.endswith((*_ROWS, "ia3_l")) or tensor.shape[0] % count:
        raise AdapterError(
            f"'{key}' is of a layer that is {count} layers in this version of transformers, and cannot be shared out: "
            "train it anew, or turn it into LoRA with the version that it was made with."
        )
    return [share.contiguous() for share in tensor.chunk(count)]


def _spec(spec: AdapterSpec, table: tuple[Divided, ...]) -> AdapterSpec:
    changes: dict[str, Any] = {}
    for field in _BY_PATH:
        if rows := getattr(spec, field, None):
            changes[field] = {one: value for path, value in rows.items() for one in _present(path, table)}
    if isinstance(spec.targets, tuple):
        changes["targets"] = tuple(one for target in spec.targets for one in _present(target, table))
    return spec.model_copy(update=changes)

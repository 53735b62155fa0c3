"""Values that hold tensors: dataclasses, tuples, lists and mappings of them, such as a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def form_of(value: object) -> Hashable:
    """Return all of a value but its tensors' elements: types, names, shapes, dtypes, devices, and what is no tensor.

    Raises:
        TypeError: it holds something that is neither a tensor nor hashable.
    """
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.dtype, value.device)
    parts = _parts(value)
    if parts is None:
        hash(value)
        return cast(Hashable, value)
    return (type(value), *((name, form_of(part)) for name, part in parts))


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors of a value, in an order that its form decides."""
    if isinstance(value, Tensor):
        yield value
    for _, part in _parts(value) or ():
        yield from tensors_in(part)


def with_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """Return the same value with ``change`` applied to its tensors."""
    if isinstance(value, Tensor):
        return cast(T, change(value))
    parts = _parts(value)
    if parts is None:
        return value
    changed = {name: with_tensors(part, change) for name, part in parts}
    if is_dataclass(value):
        return cast(T, replace(cast(Any, value), **changed))
    if isinstance(value, Mapping):
        return cast(T, changed)
    return cast(T, type(value)(changed.values()))  # pyright: ignore[reportCallIssue, reportUnknownArgumentType]


@torch.no_grad()
def refill(standing: object, value: object) -> None:
    """Copy the tensors of a value into those of another of the same form."""
    for place, tensor in zip(tensors_in(standing), tensors_in(value), strict=True):
        place.copy_(tensor, non_blocking=True)


def _parts(value: object) -> list[tuple[Any, object]] | None:
    """What a value is put together from, by name; None for what is one thing."""
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return list(cast(Mapping[Any, object], value).items())
    if isinstance(value, tuple | list):
        return list(enumerate(cast(Sequence[object], value)))
    return None

"""What settings there are: walking pydantic models by annotation, for nearest names and for the reference page."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

Group = type[BaseModel]


def groups_of(annotation: Any) -> list[Group]:
    """The settings classes an annotation allows directly: ``X``, ``X | None``, ``Annotated[A | B, …]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return groups_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [group for part in get_args(annotation) for group in groups_of(part)]
    return []


def _inside(annotation: Any) -> Iterator[Any]:
    """What stands inside lists, tuples and mappings of an annotation."""
    origin = get_origin(annotation)
    if origin in (Annotated, Union, types.UnionType):
        parts = get_args(annotation)
        for part in parts[:1] if origin is Annotated else parts:
            yield from _inside(part)
    elif origin in (list, tuple, set, frozenset):
        yield from (part for part in get_args(annotation) if part is not Ellipsis)
    elif origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        yield get_args(annotation)[1]


def choose(groups: list[Group], values: Any) -> Group | None:
    """The class that ``values`` are meant for: by their discriminating word, else the only one there is."""
    if len(groups) == 1:
        return groups[0]
    if isinstance(values, Mapping):
        for group in groups:
            fields = group.model_fields.items()
            words = {name: get_args(info.annotation) for name, info in fields if get_origin(info.annotation) is Literal}
            if any(values.get(name) in allowed for name, allowed in words.items()):
                return group
    return None


def fields_at(group: Group | None, key: tuple[str | int, ...], values: Any) -> list[str]:
    """The names of the settings that may stand at ``key`` inside ``group``, given the values written there."""
    annotation: Any = group
    for part in key:
        if group is not None and part in group.model_fields:
            annotation = group.model_fields[str(part)].annotation
            inner = groups_of(annotation)
        else:
            inner = [found for inside in _inside(annotation) for found in groups_of(inside)]
        values = step(values, part)
        group = choose(inner, values)
    return list(group.model_fields) if group is not None else []


def step(values: Any, part: str | int) -> Any:
    """``values[part]``, or None where there is no such thing."""
    if isinstance(values, Mapping):
        return values.get(part)
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return values[part]
    return None


def has(values: Any, part: str | int) -> bool:
    """Whether ``part`` is a key or an index of ``values``."""
    if isinstance(values, Mapping):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and 0 <= part < len(values)

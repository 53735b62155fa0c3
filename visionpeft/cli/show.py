"""What commands share: a row of the command line, and how they print: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer


class Command(NamedTuple):
    """One row of the command line: its name, what it runs, its line in the list, and an example for its help."""

    name: str
    function: Callable[..., None]
    summary: str
    example: str


def plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses and mappings as objects, paths as text, numbers of tensors as numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Sequence | set | frozenset):
        return [plain(v) for v in value]
    dumped = getattr(value, "model_dump", None)
    return dumped(mode="json") if dumped is not None else str(value)


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def rows(pairs: Mapping[str, Any] | Sequence[tuple[str, Any]], indent: int = 0) -> None:
    """Print ``name  value`` lines with the values in one column."""
    items = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs)
    width = max((len(name) for name, _ in items), default=0)
    for name, value in items:
        typer.echo(f"{' ' * indent}{name:<{width}}  {value}")


def here(path: Path) -> str:
    """A path as the user would type it: relative to the current folder where it is inside."""
    absolute = path.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def inline(value: Any) -> str:
    """A list or a table of a few values on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inline(inner)}" for name, inner in value.items()) or "none"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def shortened(entries: Mapping[str, str], width: int = 100) -> dict[str, str]:
    """Metadata for people: long texts cut, and entries that differ by their numbers alone told once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, value in entries.items():
        groups.setdefault((re.sub(r"\d+", "*", name), value), []).append(name)
    found: dict[str, str] = {}
    for (pattern, value), names in groups.items():
        cut = value if len(value) <= width else f"{value[:width]} … ({len(value)} characters)"
        if len(names) > 2:
            found[pattern] = f"{cut} ({len(names)} entries)"
        else:
            found |= dict.fromkeys(names, cut)
    return found


def number_of(number: str, whole: str, path: str) -> float:
    """A weight that was written after an adapter's file.

    Raises:
        ConfigError: it is no finite number.
    """
    from math import isfinite

    from visionpeft.errors import ConfigError

    try:
        weight = float(number)
    except ValueError:
        weight = float("nan")
    if not isfinite(weight):
        raise ConfigError(f"'{whole}': the weight should be a number, as in {path}=0.7, not '{number}'.")
    return weight

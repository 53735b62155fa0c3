"""What the command line says of a blend, as values: parts with weights, options of the method; and its report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpeft.cli.show import here, number_of
from visionpeft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from visionpeft.adapters.archive import Adapter

_COMMA = re.compile(r",(?![^\[]*\])")
Weight = float | list[float] | dict[str, float | list[float]]


def parts_of(texts: Iterable[str], base: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Adapter, Any]]:
    """Read adapters of any program with their weights, by the names of their files."""
    from visionpeft.cli.adapters import weighted
    from visionpeft.files import read

    parts: dict[str, tuple[Adapter, Any]] = {}
    for text in texts:
        path, weight = weighted(text)
        name = path.name.removesuffix(".safetensors")
        parts[name if name not in parts else f"{name}-{len(parts)}"] = (read(path, base), weight)
    return parts


def weight_of(text: str, whole: str, path: str) -> Weight:
    """``0.8``, ``[0,1,0]`` or ``unet:0.8,unet.up_blocks:[0,1],*:0`` as a weight.

    Raises:
        ConfigError: it is none of them.
    """
    if ":" not in text:
        return _number_or_gradient(text, whole, path)
    table: dict[str, float | list[float]] = {}
    for item in _COMMA.split(text):
        prefix, _, value = item.rpartition(":")
        if not prefix or prefix in table:
            raise ConfigError(f"'{whole}': '{item}' should be a part of the model, once, and its weight: unet:0.7.")
        table[prefix] = _number_or_gradient(value, whole, path)
    return table


def options_of(texts: Iterable[str]) -> dict[str, Any]:
    """``density=0.3`` as an option and its value: a number where it is one.

    Raises:
        ConfigError: there is no ``=``.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set '{text}' should be NAME=VALUE, such as density=0.3.")
        options[name] = number_of(value, text, name) if re.fullmatch(r"[-+.\deE]+", value) else value
    return options


def weight_text(weight: Weight) -> str:
    """A weight as it is written on the command line: ``*:0.5,unet:[0,1,0]``."""
    if isinstance(weight, dict):
        return ",".join(f"{part}:{weight_text(value)}" for part, value in weight.items())
    return f"[{','.join(f'{number:g}' for number in weight)}]" if isinstance(weight, list) else f"{weight:g}"


def written_report(
    parts: Mapping[str, tuple[Adapter, Any]],
    target: Path,
    rank: int,
    method: str,
    seed: int,
    base: Mapping[str, Tensor] | None,
) -> dict[str, str]:
    """Write the report on interference beside a blend; return its advice and its files."""
    from visionpeft.evaluation.interference import EXACT, interference
    from visionpeft.evaluation.interference_map import save_heat_map

    stem = target.with_name(target.name.removesuffix(".safetensors"))
    found = interference(parts, rank, tuple(dict.fromkeys((*EXACT, method))), seed, base)
    table = found.save(f"{stem}.interference.json")
    picture = save_heat_map(found, f"{stem}.interference.png")
    return {"advice": found.advice, "report": here(table), "map": here(picture)}


def _number_or_gradient(text: str, whole: str, path: str) -> float | list[float]:
    if text.startswith("[") and text.endswith("]"):
        return [number_of(number.strip(), whole, path) for number in text[1:-1].split(",")]
    return number_of(text, whole, path)

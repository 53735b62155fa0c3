"""All that is needed to make a picture again, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from visionpeft import __version__
from visionpeft.errors import FileFormatError
from visionpeft.inference.generate import Request, size_of
from visionpeft.inference.region import region_from_text
from visionpeft.models.base import Base

_KINDS: Mapping[str, Any] = {
    "prompt": str, "negative": str, "seed": int, "steps": int, "guidance": float, "sampler": str, "width": int,
    "height": int, "compose": str, "switch_every": int,
}  # fmt: skip
_BEFORE_BLENDING: dict[str, Any] = {"compose": "sum", "switch_every": 5, "regions": {}}  # older pictures say none of it


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as a recipe names it.

    Attributes:
        name: under which it was active.
        file: its file's name, without the folder.
        sha256: of the file's bytes, in hexadecimal.
        weight: how much it was active: a number, the text of a schedule, or a table of them by part of the model.
    """

    name: str
    file: str
    sha256: str
    weight: float | str | dict[str, float | str]


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recipe_for(base: Base, request: Request, adapters: Sequence[AdapterFile] = ()) -> dict[str, Any]:
    """Return what :func:`visionpeft.inference.png.save_png` writes into a picture.

    Args:
        base: the model that made it.
        request: what was asked for; its size is made explicit.
        adapters: the active ones.
    """
    width, height = size_of(base, request)
    asked = {field.name: getattr(request, field.name) for field in fields(request) if field.name != "weights"}
    return asked | {
        "regions": {name: region.text() for name, region in request.regions.items()},
        "width": width,
        "height": height,
        "base": {"id": base.id, "hash": base.hash, "family": base.family.name},
        "adapters": [asdict(adapter) for adapter in adapters],
        "program": f"visionpeft {__version__}",
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def request_of(recipe: Mapping[str, Any]) -> tuple[Request, list[AdapterFile]]:
    """Return the request and the adapters of a recipe.

    Raises:
        FileFormatError: the recipe lacks something or has something of the wrong kind.
    """
    try:
        adapters = [
            AdapterFile(str(entry["name"]), str(entry["file"]), str(entry["sha256"]), _weight(entry["weight"]))
            for entry in recipe["adapters"]
        ]
        whole = {**_BEFORE_BLENDING, **recipe}
        values = {name: kind(whole[name]) for name, kind in _KINDS.items()}
        regions = {str(name): region_from_text(text) for name, text in whole["regions"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the recipe is not whole: {error!r}. Take a picture that this program wrote.") from error
    weights = {adapter.name: adapter.weight for adapter in adapters}
    return Request(**values, weights=weights, regions=regions), adapters


def _weight(value: Any) -> float | str | dict[str, float | str]:
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        return {prefix: weight if isinstance(weight, str) else float(weight) for prefix, weight in table.items()}
    return value if isinstance(value, str) else float(value)

"""All that is needed to make a picture again, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visionpeft import __version__
from visionpeft.errors import FileFormatError
from visionpeft.inference.generate import Request, size_of
from visionpeft.models.base import Base


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as a recipe names it.

    Attributes:
        name: under which it was active.
        file: its file's name, without the folder.
        sha256: of the file's bytes, in hexadecimal.
        weight: how much it was active.
    """

    name: str
    file: str
    sha256: str
    weight: float


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
    asked = {name: value for name, value in asdict(request).items() if name != "weights"}
    return asked | {
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
            AdapterFile(str(entry["name"]), str(entry["file"]), str(entry["sha256"]), float(entry["weight"]))
            for entry in recipe["adapters"]
        ]
        kinds: dict[str, Any] = {"prompt": str, "negative": str, "sampler": str, "guidance": float}
        names = [field.name for field in fields(Request) if field.name != "weights"]
        values = {name: kinds.get(name, int)(recipe[name]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the recipe is not whole: {error!r}. Take a picture that this program wrote.") from error
    return Request(**values, weights={adapter.name: adapter.weight for adapter in adapters}), adapters

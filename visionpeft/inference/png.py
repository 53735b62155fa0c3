"""Pictures that know how they were made: a recipe in the PNG, and the text that other programs read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from visionpeft import safefile
from visionpeft.errors import FileFormatError
from visionpeft.inference.samplers import SAMPLERS

KEY = "visionpeft"
"""Name of the iTXt chunk with the recipe as JSON."""
PARAMETERS = "parameters"
"""Name of the chunk with the text that AUTOMATIC1111, Forge, Civitai and others read."""
_LONGEST_TEXT = 1 << 20


def save_png(image: Image.Image, path: str | Path, recipe: Mapping[str, Any]) -> Path:
    """Write ``image`` as PNG with its recipe, all or nothing; return the path.

    Args:
        image: RGB.
        path: file to write, replaced where it exists.
        recipe: JSON-like; where it has a "prompt", the text of :func:`parameters_text` is added.

    Raises:
        OutputError: the file cannot be written.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(KEY, json.dumps(recipe, sort_keys=True, ensure_ascii=False))
    if "prompt" in recipe:
        chunks.add_itxt(PARAMETERS, parameters_text(recipe))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    safefile.write_atomically(path, [buffer.getvalue()])
    return Path(path)


def recipe_of(path: str | Path) -> dict[str, Any]:
    """Return the recipe that :func:`save_png` wrote into a picture.

    Raises:
        FileFormatError: the file is no PNG, or has no recipe of this program, or a damaged one.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            text = image.info.get(KEY)
    except (OSError, SyntaxError, ValueError) as error:
        raise FileFormatError(f"{path} is not a PNG that can be read: {error}.") from error
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        raise FileFormatError(f"{path} holds no recipe of this program: another made it, or it was saved anew without.")
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"the recipe in {path} is damaged: {error}.") from error
    if not isinstance(recipe, dict):
        raise FileFormatError(f"the recipe in {path} is damaged: expected named values.")
    return recipe


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """Return the three lines that AUTOMATIC1111 writes: prompt with its ``<lora:name:weight>``, negative, settings."""
    adapters = [entry for entry in recipe.get("adapters", ()) if isinstance(entry.get("weight"), int | float)]
    loras = "".join(f" <lora:{entry['name']}:{entry['weight']:g}>" for entry in adapters)
    lines = [f"{recipe['prompt']}{loras}"]
    if recipe.get("negative"):
        lines.append(f"Negative prompt: {recipe['negative']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in _settings(recipe, adapters).items()))
    return "\n".join(lines)


def _settings(recipe: Mapping[str, Any], adapters: list[dict[str, Any]]) -> dict[str, Any]:
    sampler = str(recipe.get("sampler", ""))
    base: Mapping[str, Any] = recipe.get("base", {})
    settings = {
        "Steps": recipe.get("steps"),
        "Sampler": SAMPLERS[sampler].label if sampler in SAMPLERS else sampler,
        "CFG scale": recipe.get("guidance"),
        "Seed": recipe.get("seed"),
        "Size": f"{recipe['width']}x{recipe['height']}" if "width" in recipe and "height" in recipe else None,
        "Model hash": str(base["hash"])[:10] if base.get("hash") else None,
        "Model": base.get("id"),
    }
    settings |= _blending(recipe)
    hashes = ", ".join(f"{entry['name']}: {str(entry.get('sha256'))[:12]}" for entry in adapters if entry.get("sha256"))
    if hashes:
        settings["Lora hashes"] = f'"{hashes}"'
    settings["Version"] = recipe.get("program")
    return {name: value for name, value in settings.items() if value is not None}


def _blending(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What AUTOMATIC1111 has no words for, quoted as it quotes: schedules, weights of parts, turns, masks."""
    compose = recipe.get("compose", "sum")
    turns = f" every {recipe['switch_every']}" if compose == "switch" else ""
    others = {e["name"]: e["weight"] for e in recipe.get("adapters", ()) if isinstance(e.get("weight"), str | dict)}
    found = {"Compose": f"{compose}{turns}"} if compose != "sum" else {}
    if others:
        found["Adapter weights"] = json.dumps(json.dumps(others, ensure_ascii=False), ensure_ascii=False)
    if recipe.get("regions"):
        found["Masked"] = json.dumps(", ".join(recipe["regions"]), ensure_ascii=False)
    return found

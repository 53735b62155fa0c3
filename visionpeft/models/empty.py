"""A pipeline's models without values: their shapes by their settings, on torch's meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from visionpeft.errors import BaseModelError
from visionpeft.models.quiet import without_loading_bars

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def hub_folder(name: str) -> Path:
    """Return where the hub's cache holds a repository's settings.

    Raises:
        BaseModelError: it does not.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json", "*.txt"]))
    except (LocalEntryNotFoundError, ValueError, OSError) as error:
        raise BaseModelError(
            f"'{name}' is no local folder, and the hub's cache does not hold it, from which its shapes are read:"
            f" fetch its settings with `hf download {name} --include '*.json' '*.txt'`, or give a folder."
        ) from error


def shapes_of_pipeline(name: str, folder: Path) -> Any:
    """Return the diffusers pipeline of a folder with its tokenizers and scheduler, and models without values.

    Raises:
        BaseModelError: the folder is not whole, or of another pipeline.
    """
    import diffusers
    import transformers

    index = _index(folder)
    libraries: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
    parts: dict[str, Any] = {}
    for part in _PARTS:
        named = index.get(part)
        if not named or named[1] is None:
            continue
        library, kind = map(str, named)
        made = getattr(libraries[library], kind)
        parts[part] = _reading(name, folder / part, made)
    pipeline: Any = getattr(diffusers, str(index["_class_name"]))
    if index["_class_name"] == "StableDiffusionXLPipeline":
        return pipeline(**parts, add_watermarker=False)
    return pipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    try:
        index: dict[str, Any] = json.loads(file.read_text())
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BaseModelError(f"{file}: cannot be read as a pipeline's index; give a diffusers pipeline.") from None
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise BaseModelError(f"{folder}: a {kind}; this version knows Stable Diffusion 1, 2 and XL.")
    return index


def _reading(name: str, place: Path, kind: Any) -> Any:
    """One part of a pipeline: a model without values, or a tokenizer or scheduler as it is."""
    try:
        if not _is_model(kind):
            return kind.from_pretrained(str(place))
        with torch.device("meta"), without_loading_bars():
            if hasattr(kind, "load_config"):  # diffusers
                return kind.from_config(kind.load_config(str(place)))
            return kind(kind.config_class.from_pretrained(str(place)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise BaseModelError(f"'{name}': the shapes of {place.name} cannot be read ({reason}).") from error


def _is_model(kind: Any) -> bool:
    return issubclass(kind, torch.nn.Module)

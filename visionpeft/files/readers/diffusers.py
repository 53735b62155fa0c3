"""diffusers: its own dotted layout with the scale in the header, or kohya's where every key is kohya's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from math import sqrt
from typing import Any

from torch import Tensor

from visionpeft.files.readers.rules import (
    NEEDS_BASE,
    Change,
    File,
    Model,
    Reading,
    dora,
    flat,
    grouped,
    product,
    scalar,
)

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_ORIGINAL = ("input_blocks_", "middle_block_", "output_blocks_")


def apply(file: File, model: Model) -> Reading:
    """Read kohya's layout where every key begins as kohya's do, the dotted one otherwise."""
    if file.tensors and all(key.startswith(_KOHYA) for key in file.tensors):
        return _kohya(file, model)
    return _dotted(file, model)


def _kohya(file: File, model: Model) -> Reading:
    reading = Reading()
    tensors = {key: tensor for key, tensor in file.tensors.items() if "dora_scale" not in key}
    if len(tensors) < len(file.tensors):
        reading.notes.append("DoRA magnitudes are dropped with a warning: it becomes plain LoRA")
        reading.ignored += [key for key in file.tensors if key not in tensors]
    tensors = _without_mixed(tensors, reading)
    names, groups = _names(model), grouped(tensors)
    for name, parts in groups.items():
        if not {"lora_up.weight", "lora_down.weight"} <= set(parts) <= {"lora_up.weight", "lora_down.weight", "alpha"}:
            return Reading.refused(f'{name}: keys "have not been correctly renamed": {sorted(parts)}')
    alphas = [alpha for parts in groups.values() if (alpha := scalar(parts.get("alpha"))) is not None]
    usual = Counter(alphas).most_common(1)[0][0] if alphas else None
    for name, parts in groups.items():
        place, rank = names.get(name), parts["lora_down.weight"].shape[0]
        alpha = scalar(parts["alpha"]) if "alpha" in parts else usual
        if place is None:
            reading.ignored += [f"{name}.{suffix}" for suffix in parts]
            continue
        change = _fitting(
            parts["lora_up.weight"], parts["lora_down.weight"], (rank if alpha is None else alpha) / rank, model, place
        )
        if change is None:
            return Reading.refused(f"{name}: shapes do not fit")
        reading.changes[place] = change
    return reading


def _without_mixed(tensors: Mapping[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """Where both namings of SDXL's blocks stand in one file, the original ones are deleted."""
    unet = {key: key.removeprefix("lora_unet_") for key in tensors if key.startswith("lora_unet_")}
    original = {key for key, name in unet.items() if name.startswith(_ORIGINAL)}
    if any(re.match(r"(down_blocks|mid_block|up_blocks)_", name) for name in unet.values()) and original:
        reading.ignored += sorted(original)
        return {key: tensor for key, tensor in tensors.items() if key not in original}
    return dict(tensors)


def _names(model: Model) -> dict[str, str]:
    names = {f"lora_unet_{name}": place for place, name in model.original.items()}
    names |= {f"lora_unet_{flat(path)}": place for place, path in model.places("unet")}
    for place, path in model.places("text_encoder"):
        names |= {f"lora_te_{flat(path)}": place, f"lora_te1_{flat(path)}": place}
    return names | {f"lora_te2_{flat(path)}": place for place, path in model.places("text_encoder_2")}


def _fitting(up: Tensor, down: Tensor, scale: float, model: Model, place: str) -> Change | None:
    """Adapter layers have the exact shapes of the model's: nothing is reshaped."""
    if (up.shape[0], down.flatten(1).shape[1]) != model.shapes[place]:
        return None
    return product(up, down, scale, model.shapes[place])


_SUFFIX = re.compile(r"\.(?:lora_(A|B)\.weight|lora\.(down|up)\.weight|lora_linear_layer\.(down|up)\.weight)$")


def _dotted(file: File, model: Model) -> Reading:
    settings = _settings(file.metadata)
    if isinstance(settings, str):
        return Reading.refused(settings)
    reading, pairs, magnitudes = Reading(), dict[str, dict[str, Tensor]](), dict[str, Tensor]()
    for key, tensor in file.tensors.items():
        found = _SUFFIX.search(key)
        if found:
            side = "down" if (found[1] or found[2] or found[3]) in ("A", "down") else "up"
            pairs.setdefault(key[: found.start()], {})[side] = tensor
        elif key.endswith((".lora_magnitude_vector", ".lora_magnitude_vector.weight")):
            magnitudes[key.split(".lora_magnitude_vector")[0]] = tensor
        else:
            return Reading.refused(f"the key '{key}' belongs to none of the layouts")
    for name, pair in pairs.items():
        refusal = _pair(name, pair, magnitudes.get(name), settings, model, reading)
        if refusal:
            return Reading.refused(refusal)
    return reading


def _pair(
    name: str,
    pair: Mapping[str, Tensor],
    magnitude: Tensor | None,
    settings: Mapping[str, Any],
    model: Model,
    reading: Reading,
) -> str:
    """Add one module's change to the reading; return why the file is refused, or ""."""
    place = name if name in model.shapes else name.replace(".encoder.", ".text_model.encoder.", 1)
    if len(pair) < 2:
        return f"{name}: a factor is missing"
    if place not in model.shapes:
        reading.ignored += [f"{name}.{side}" for side in pair]
        return ""
    component, _, path = place.partition(".")
    path = path if component == "unet" else path.removeprefix("text_model.")
    rank = pair["down"].shape[0]
    expected = _pattern(settings.get(f"{component}.rank_pattern"), path, settings.get(f"{component}.r", rank))
    if expected != rank:
        return f"{name}: the header gives rank {expected}, the factors have {rank}"
    alpha = _pattern(settings.get(f"{component}.alpha_pattern"), path, settings.get(f"{component}.lora_alpha", rank))
    scale = alpha / (sqrt(rank) if settings.get(f"{component}.use_rslora") else rank)
    change = _fitting(pair["up"], pair["down"], scale, model, place)
    if change is None:
        return f"{name}: shapes do not fit"
    if magnitude is not None:
        if model.weights is None:
            reading.notes = [NEEDS_BASE]
            return ""
        weight = model.weights[place]
        change = dora(change, magnitude.reshape(-1, *[1] * (weight.ndim - 1)), weight, norm="output")
    reading.changes[place] = change
    return ""


def _settings(metadata: Mapping[str, str]) -> dict[str, Any] | str:
    """The header's settings, or why they make diffusers refuse the file."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return "the header's lora_adapter_metadata is no JSON"
    for name, value in settings.items():
        if name.endswith(".target_modules") and any(str(path).startswith("text_model.") for path in value):
            return "target_modules holds whole text_model.… paths, which current transformers does not have"
    return settings


def _pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Peft's rule: the first pattern that matches the end of a module's name at a dot; ``^`` means the whole name."""
    for pattern, value in (patterns or {}).items():
        name = pattern.removeprefix("^")
        if path == name or (name == pattern and path.endswith(f".{name}")):
            return value
    return default

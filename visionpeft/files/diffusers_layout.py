"""The layout that diffusers' ``load_lora_weights`` reads: dotted peft names, and the scale in a JSON header entry.

``unet.mid_block.attentions.0.proj_in.lora_A.weight``; rank, alpha and their patterns stand in the header's
``lora_adapter_metadata``, which only diffusers reads: other programs apply such files at scale 1, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from typing import Any

from torch import Tensor

from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import AdapterSpec, DoraSpec, LoraSpec, RsLoraSpec
from visionpeft.errors import AdapterError, FileFormatError
from visionpeft.files.checks import check_fits, narrowed

HEADER = "lora_adapter_metadata"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
METHODS = ("lora", "rslora", "dora")
MAGNITUDE = "lora_magnitude_vector.weight"  # with ".weight": transformers' loader of text encoders ignores it without


def write(adapter: Adapter, *, dtype: str, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the tensors of a diffusers LoRA file; their scale is in ``header``.

    Raises:
        AdapterError: a method that diffusers cannot load, or factors that do not fit.
    """
    tensors: dict[str, Tensor] = {}
    for place, parts in algebra.modules(adapter).items():
        component = place.partition(".")[0]
        _check_expressible(component, adapter.specs[component])
        check_fits(place, parts, weights)
        for name, tensor in parts.items():
            if name == "lora_magnitude_vector":  # exact: rounding W's length would drown a small ΔW
                tensors[f"{place}.{MAGNITUDE}"] = narrowed(place, tensor, "float32")
            else:
                tensors[f"{place}.{name}"] = narrowed(place, tensor, dtype)
    return tensors


def _check_expressible(component: str, spec: AdapterSpec) -> None:
    if component not in COMPONENTS:
        raise AdapterError(f"diffusers' LoRA files have no component '{component}': use format='native'")
    if spec.method not in METHODS:
        raise AdapterError(
            f"diffusers' LoRA files cannot express the method '{spec.method}' ({component}): "
            "convert the adapter first with adapter.to_lora(rank=…, base=…)"
        )


def header(adapter: Adapter) -> dict[str, str]:
    """Return the header entries that give diffusers rank, alpha and their patterns, component by component."""
    settings: dict[str, Any] = {}
    places = algebra.modules(adapter)
    for component, spec in adapter.specs.items():
        paths = [place.partition(".")[2] for place in places if place.startswith(component + ".")]
        for name, value in _config(component, spec, paths).items():
            settings[f"{component}.{name}"] = value
    return {"format": "pt", HEADER: json.dumps(settings, sort_keys=True)}


def _config(component: str, spec: AdapterSpec, paths: list[str]) -> dict[str, Any]:
    """One component's peft configuration; peft reads patterns as regular expressions of a name's end."""
    if not isinstance(spec, LoraSpec | RsLoraSpec | DoraSpec):
        raise AdapterError(f"diffusers' LoRA files cannot express the method '{spec.method}' ({component})")
    alpha = spec.rank if spec.alpha is None else spec.alpha
    alphas = dict(spec.alpha_pattern)
    if spec.alpha is None:  # a module of its own rank has its own alpha too, so that its scale stays as it is
        alphas = {path: float(rank) for path, rank in spec.rank_pattern.items()} | alphas
    return {
        "r": spec.rank,
        "lora_alpha": alpha,
        "rank_pattern": {_pattern(component, path): rank for path, rank in spec.rank_pattern.items()},
        "alpha_pattern": {_pattern(component, path): value for path, value in alphas.items()},
        "target_modules": sorted(_ending(component, path) for path in paths),
        "use_rslora": isinstance(spec, RsLoraSpec),
        "use_dora": isinstance(spec, DoraSpec),
        "bias": "none",
        "peft_type": "LORA",
    }


def _ending(component: str, path: str) -> str:
    """A module's name that holds with and without CLIP's ``text_model``, which transformers 5.6 took away."""
    return path if component == "unet" else path.removeprefix("text_model.")


def _pattern(component: str, path: str) -> str:
    return f"^{path}" if component == "unet" else _ending(component, path)


def settings_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header's settings by "component.name".

    Raises:
        FileFormatError: the entry is no table.
    """
    try:
        settings = json.loads(metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"the header entry {HEADER} is damaged: {error}") from error
    if not isinstance(settings, dict):
        raise FileFormatError(f"the header entry {HEADER} must be a table of settings")
    return settings


def scale_in_header(place: str, rank: int, settings: Mapping[str, Any]) -> float:
    """The scale that peft would apply: 1 without settings, otherwise from alpha, its pattern, and rsLoRA's root.

    Raises:
        FileFormatError: an alpha that no scale can be made of.
    """
    component, _, path = place.partition(".")
    name = _ending(component, path)
    alpha = _matching(settings.get(f"{component}.alpha_pattern"), name, settings.get(f"{component}.lora_alpha", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 65536:
        raise FileFormatError(
            f"the header entry {HEADER} gives '{place}' the alpha {alpha!r}: no scale can be made of it"
        )
    return alpha / (sqrt(rank) if settings.get(f"{component}.use_rslora") else rank)


def _matching(patterns: Any, name: str, default: Any) -> Any:
    if not isinstance(patterns, dict):
        return default
    for pattern, value in patterns.items():
        plain = str(pattern).removeprefix("^")
        if name == plain or name.endswith(f".{plain}"):
            return value
    return default

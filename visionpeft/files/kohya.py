"""The layout of kohya's trainers, which ComfyUI, AUTOMATIC1111, Forge, InvokeAI and diffusers read.

A module is one flat name with a suffix a tensor: ``lora_unet_mid_block_attentions_0_proj_in.lora_down.weight``, and a
scalar ``.alpha`` for every module: the programs multiply with alpha / rank, and with 1 where it is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import scale_of
from visionpeft.errors import AdapterError, FileFormatError
from visionpeft.files.assemble import Module, assemble
from visionpeft.files.checks import Parts, check_fits, narrowed
from visionpeft.files.metadata import read_metadata
from visionpeft.files.names import PREFIXES, Blocks, canonical_place, is_original, kohya_name

SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    **{name: name for name in algebra.PARAMETERS if name.startswith(("hada_", "lokr_"))},
}
"""This package's parameter names -> kohya's and LyCORIS' suffixes."""

STRUCTURE = "visionpeft_unet"
"""Header entry with the UNet's structure, where it is not the published models' and the names depend on it."""

METHODS = ("lora", "rslora", "dora", "loha", "lokr")
"""What the layout can express."""

_PARAMETERS = {suffix: name for name, suffix in SUFFIXES.items()}


def write(adapter: Adapter, family: str, *, dtype: str, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the tensors of a kohya file; the scale of every module stands in its own float32 ``alpha``.

    rsLoRA becomes plain LoRA with alpha' = alpha·√rank; DoRA's magnitudes (a value an output) become ``dora_scale``.

    Raises:
        AdapterError: a method that the layout cannot express, or factors that do not fit.
        FileFormatError: a module that has no name in the layout.
    """
    blocks = Blocks.of(weights or ())
    tensors: dict[str, Tensor] = {}
    for place, parts in algebra.modules(adapter).items():
        component, _, path = place.partition(".")
        spec = adapter.specs[component]
        if spec.method not in METHODS:
            raise AdapterError(
                f"the kohya layout cannot express the method '{spec.method}' ({component}): "
                "convert the adapter first with adapter.to_lora(rank=…, base=…)"
            )
        check_fits(place, parts, weights)
        name = kohya_name(place, family, blocks)
        for suffix, tensor in _module(parts, scale_of(spec, path)).items():
            exact = suffix in ("alpha", "dora_scale")  # rounding these would change a whole module or row
            tensors[f"{name}.{suffix}"] = narrowed(place, tensor, "float32" if exact else dtype)
    return tensors


def _module(parts: Parts, scale: float) -> dict[str, Tensor]:
    named = {SUFFIXES[name]: tensor for name, tensor in parts.items()}
    if "dora_scale" in named:  # [out] -> [out, 1, …]: a value an output, in the shape that multiplies the weight
        ones = (1,) * (named["lora_down.weight"].ndim - 1)
        named["dora_scale"] = named["dora_scale"].reshape(-1, *ones)
    rank = divisor(named)
    if rank is None:  # both factors of LoKr are whole: the programs apply no scale then
        named["lokr_w1"] = named["lokr_w1"] * scale
    return {**named, "alpha": torch.tensor(scale * rank if rank else 1.0)}


def divisor(named: Parts) -> int | None:
    """What the programs divide a module's alpha by; None where they apply no scale (LoKr of two whole factors)."""
    for suffix in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if suffix in named:
            return named[suffix].shape[0]
    return None


def recognises(names: list[str]) -> bool:
    """Whether a file's tensor names are kohya's."""
    return any(name.startswith(("lora_unet_", "lora_te")) for name in names)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Adapter:
    """Build the adapter of a kohya file: SD1, SD2 or SDXL in either naming; LoRA, DoRA, LoHa or LoKr.

    Raises:
        FileFormatError: names or suffixes that the layout does not have, or missing tensors.
    """
    blocks = Blocks.read(metadata.get(STRUCTURE, ""))
    modules: dict[str, Module] = {}
    settings = _settings(metadata)
    for name, named in _grouped(tensors).items():
        place = canonical_place(name, blocks)
        if place is None:
            raise FileFormatError(f"'{name}' is no module of Stable Diffusion 1, 2 or XL")
        if place in modules:
            raise FileFormatError(f"'{name}' names a module that the file has already under another name")
        modules[place] = _read_module(name, named, settings)
    return assemble(modules, read_metadata(metadata, family_of(tensors, metadata)), {})


def family_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Recognise "sd1", "sd2" or "sdxl" by names, then widths, then metadata; "" where nothing tells."""
    if any(name.startswith(("lora_te2_", "lora_te1_")) or is_original(name) for name in tensors):
        return "sdxl"
    version = metadata.get("ss_base_model_version", "")
    for start, family in (("sdxl_", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1")):
        if version.startswith(start):
            return family
    widths = {t.shape[1] for name, t in tensors.items() if name.endswith("attn2_to_k.lora_down.weight")}
    return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(widths.pop(), "") if len(widths) == 1 else ""


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    prefixes = tuple(prefix for table in PREFIXES.values() for prefix in table.values())
    for name in sorted(tensors):
        module, _, suffix = name.partition(".")
        if not module.startswith(prefixes):
            raise FileFormatError(f"'{name}' does not belong into a kohya file ({', '.join(sorted(set(prefixes)))} …)")
        if suffix not in _PARAMETERS and suffix not in ("alpha", "lora_mid.weight"):
            raise FileFormatError(f"'{name}' has the unknown suffix '{suffix}'; known: {', '.join(_PARAMETERS)}, alpha")
        grouped.setdefault(module, {})[suffix] = tensors[name]
    return grouped


def _read_module(name: str, named: dict[str, Tensor], settings: Mapping[str, Any]) -> Module:
    method = _method(name, named)
    rank = divisor(named)
    alpha = named.pop("alpha", None)
    if "lora_mid.weight" in named:
        named = _without_mid(named)
    parts = {_PARAMETERS[suffix]: tensor for suffix, tensor in named.items()}
    if "lora_magnitude_vector" in parts:
        parts["lora_magnitude_vector"] = _magnitudes(name, named)
    check_fits(name, parts, None)
    settings = settings if method == "lokr" else {}
    if rank is None:
        rank = max(named["lokr_w2"].shape[:2])
        return Module(method, parts, rank, float(rank), settings)
    return Module(method, parts, rank, _alpha(name, alpha, rank), settings)


def _alpha(name: str, alpha: Tensor | None, rank: int) -> float:
    """The numerator of the scale; every program applies a scale of 1 where it is missing."""
    if alpha is None:
        return float(rank)
    value = float(alpha.item()) if alpha.numel() == 1 else -1.0
    if not 0 < value <= 65536:
        raise FileFormatError(
            f"'{name}' has no usable alpha ({list(alpha.shape)}, {value}): no scale can be made of it"
        )
    return value


_STARTS = {"lora": "lora_", "loha": "hada_", "lokr": "lokr_"}

_NEEDED = {
    "lora": (("lora_down.weight",), ("lora_up.weight",)),
    "loha": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": (("lokr_w1", "lokr_w1_a"), ("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a"), ("lokr_w2", "lokr_w2_b")),
}


def _method(name: str, named: Parts) -> str:
    """The method of a module, after checking that all of its tensors are there."""
    kinds = [kind for kind, start in _STARTS.items() if any(suffix.startswith(start) for suffix in named)]
    if len(kinds) != 1:
        raise FileFormatError(f"'{name}' is no LoRA, DoRA, LoHa or LoKr module: it has {', '.join(sorted(named))}")
    for choice in _NEEDED[kinds[0]]:
        if not any(suffix in named for suffix in choice):
            raise FileFormatError(f"'{name}' lacks {' or '.join(choice)}: the file is not whole")
    return "dora" if "dora_scale" in named else kinds[0]


def _without_mid(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold a Tucker core [r, r, kh, kw] into the down factor: the same ΔW as plain LoRA over a convolution."""
    down, middle = named["lora_down.weight"].float(), named["lora_mid.weight"].float()
    if middle.ndim != 4 or middle.shape[:2] != (down.shape[0], down.shape[0]):
        raise FileFormatError(f"a lora_mid of shape {list(middle.shape)} does not fit a rank of {down.shape[0]}")
    folded = torch.einsum("rskl,si->rikl", middle, down.flatten(1))
    rest = {suffix: tensor for suffix, tensor in named.items() if suffix != "lora_mid.weight"}
    return {**rest, "lora_down.weight": folded}


def _magnitudes(name: str, named: Parts) -> Tensor:
    scale, outputs = named["dora_scale"], named["lora_up.weight"].shape[0]
    if scale.numel() != outputs or scale.shape[0] != outputs:
        raise FileFormatError(
            f"'{name}' has DoRA magnitudes of shape {list(scale.shape)}, by input as LyCORIS once wrote them; "
            f"only magnitudes by output ([{outputs}, 1]) are read"
        )
    return scale.reshape(1, -1, 1, 1) if named["lora_up.weight"].ndim == 4 else scale.reshape(-1)


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a LoKr spec needs beside rank and alpha, from the network's arguments where the file has them."""
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return {}  # free text of another program; the tensors say enough to read the file
    if not isinstance(arguments, dict):
        return {}
    known: dict[str, Any] = {}
    if str(arguments.get("factor", "")).lstrip("-").isdigit():
        known["factor"] = int(arguments["factor"])
    if "decompose_both" in arguments:
        known["decompose_both"] = str(arguments["decompose_both"]).lower() == "true"
    return known

"""From a file's tensors to an adapter, module by module, whatever its layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionpeft.adapters.archive import Adapter
from visionpeft.errors import AdapterError, FileFormatError, did_you_mean
from visionpeft.files import cloneofsimo, turned
from visionpeft.files.assemble import Module, assemble, dense
from visionpeft.files.checks import check_fits
from visionpeft.files.diffusers_layout import HEADER, scale_in_header, settings_of
from visionpeft.files.layout import Found, Parsed
from visionpeft.files.lycoris import has_no_bias
from visionpeft.files.metadata import read_metadata
from visionpeft.files.names import DORA, STRUCTURE
from visionpeft.files.parts import Kind, kind_of

Tensors = Mapping[str, Tensor]
Scale = Callable[[str, int], float]

NAMES = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
"""A file's suffix -> this package's parameter, where they differ."""

_MISSHAPEN = (RuntimeError, ValueError, IndexError, KeyError, TypeError, ZeroDivisionError)
"""What arithmetic on the tensors of a hostile file may raise."""

_KERNEL = 7  # no convolution of these models has a larger side


def adapter_of(parsed: Parsed, tensors: Tensors, metadata: Mapping[str, str], base: Tensors | None = None) -> Adapter:
    """Build the adapter of a file.

    Args:
        parsed: its names, sorted.
        tensors: its tensors.
        metadata: its header's entries.
        base: the base's weights by "component.path", for the methods that are functions of them.

    Raises:
        FileFormatError: a name without a place, a module that is not whole, or one that needs the base.
    """
    _check_names(parsed)
    scale, arguments = _scale(parsed, metadata), _arguments(metadata)
    modules: dict[str, Module] = {}
    for found in parsed.modules:
        named = {suffix: tensors[key] for suffix, key in found.keys.items()}
        for place, own in _shared_out(found, named):
            modules[place] = _module(found.name, place, own, parsed.family, scale, arguments, base)
    if metadata.get(DORA) == "base":
        modules = {place: _over_own_rows(place, module, base) for place, module in modules.items()}
    heads = {
        f"{component}.token.{word}": torch.atleast_2d(tensors[key])
        for word, vectors in parsed.words.items()
        for component, key in vectors.items()
    }
    return assemble(modules, read_metadata(_kept(parsed, metadata), parsed.family), heads)


def read_file(
    path: Path, parsed: Parsed, tensors: Tensors, metadata: Mapping[str, str], base: Tensors | None
) -> Adapter:
    """As ``adapter_of``, with the file's name in every message."""
    try:
        return adapter_of(parsed, tensors, metadata, base)
    except (FileFormatError, AdapterError) as error:
        raise FileFormatError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except _MISSHAPEN as error:
        raise FileFormatError(f"{path}: its tensors have shapes that make no adapter ({error})") from error


def _check_names(parsed: Parsed) -> None:
    if parsed.strange:
        known = [key for found in parsed.modules for key in found.keys.values()]
        name, reason = next(iter(parsed.strange.items()))
        more = f" ({len(parsed.strange)} such names)" if len(parsed.strange) > 1 else ""
        near = did_you_mean(name[:120], known[:2000]) if len(parsed.strange) < 10 else ""
        raise FileFormatError(f"{reason}{more}.{near}")
    if parsed.twice:
        raise FileFormatError(f"'{parsed.twice[0]}' stands in the file already under another name")


def _kept(parsed: Parsed, metadata: Mapping[str, str]) -> dict[str, str]:
    """The header's entries that are no structure of the file."""
    structure = {HEADER, "format", STRUCTURE, DORA}
    if parsed.layout == "cloneofsimo":
        structure |= {"unet", "text_encoder", *parsed.words}
        structure |= {name for name in metadata if cloneofsimo.NAME.fullmatch(name.replace(":rank", ":up"))}
    return {name: value for name, value in metadata.items() if name not in structure}


def _scale(parsed: Parsed, metadata: Mapping[str, str]) -> Scale:
    """What a module without an alpha of its own is scaled with: by the header, otherwise 1."""
    if HEADER not in metadata:
        return lambda place, rank: 1.0
    settings = settings_of(metadata)
    return lambda place, rank: scale_in_header(place, rank, settings)


def _shared_out(found: Found, named: Tensors) -> list[tuple[str, dict[str, Tensor]]]:
    """A module, or the several that a fused one is: the same down factor, the up factor's rows shared out."""
    if len(found.places) == 1:
        return [(found.places[0], dict(named))]
    if not set(named) <= {"lora_down.weight", "lora_up.weight", "alpha"} or "lora_up.weight" not in named:
        raise FileFormatError(f"'{found.name}' is a fused module, of which only plain LoRA is read: inspect it instead")
    up, parts = named["lora_up.weight"], sum(found.shares)
    if up.ndim != 2 or up.shape[0] % parts:
        raise FileFormatError(
            f"'{found.name}': {up.shape[0]} rows cannot be shared out among {len(found.places)} modules"
        )
    rows = up.split([share * up.shape[0] // parts for share in found.shares])
    return [(place, {**named, "lora_up.weight": own}) for place, own in zip(found.places, rows, strict=True)]


def _module(
    name: str,
    place: str,
    named: dict[str, Tensor],
    family: str,
    scale: Scale,
    arguments: Mapping[str, Any],
    base: Tensors | None,
) -> Module:
    kind = _kind(name, named)
    path = place.partition(".")[2]
    if kind.name in ("full", "norm"):
        return Module("full", _differences(named), 1, 1.0)
    if kind.name == "ia3" and base is None and (vector := _vector(place, named)) is not None:
        return Module("ia3", {"ia3_l": vector}, 1, 1.0)
    if kind.base:
        if kind.name not in turned.CHANGES:
            raise FileFormatError(f"'{name}' is {kind.name}, which is inspected, not read")
        weight = _weight(kind.name, name, place, base)
        return Module("full", {"weight.diff": turned.delta(kind.name, name, named, weight)}, 1, 1.0)
    rank, alpha = divisor(named), named.pop("alpha", None)
    if "lora_mid.weight" in named:
        named = _without_mid(name, named)
    if "lora_magnitude_vector" in named:  # peft's are by output, whatever their shape
        named["dora_scale"] = named.pop("lora_magnitude_vector").reshape(-1, 1)
    magnitudes = named.pop("dora_scale", None)
    parts = {NAMES.get(suffix, suffix): tensor for suffix, tensor in named.items()}
    check_fits(name, parts, None)
    if rank is None:  # both factors of LoKr are whole: the programs apply no scale then
        rank = max(named["lokr_w2"].shape[:2])
        found = Module(kind.name, parts, rank, float(rank), arguments)
    else:
        number = rank * scale(place, rank) if alpha is None else _alpha(name, alpha)
        found = Module(kind.name, parts, rank, number, arguments if kind.name == "lokr" else {})
    return found if magnitudes is None else _decomposed(name, place, path, found, magnitudes, family, base)


def _kind(name: str, named: Tensors) -> Kind:
    """The kind of a module, after checking that all of its tensors are there and no others."""
    kind = kind_of(named)
    if kind is None:
        raise FileFormatError(f"'{name}' is no module of a known method: it has {', '.join(sorted(named))}")
    if missing := kind.missing(named):
        raise FileFormatError(f"'{name}' lacks {missing}: the file is not whole")
    if stray := kind.stray(named):
        raise FileFormatError(f"'{name}' is {kind.name} and has '{stray[0]}' too, which does not belong to it")
    return kind


def _differences(named: Tensors) -> dict[str, Tensor]:
    names = {"diff": "weight.diff", "w_norm": "weight.diff", "diff_b": "bias.diff", "b_norm": "bias.diff"}
    return {names[suffix]: tensor for suffix, tensor in named.items() if suffix in names}


def _vector(place: str, named: Tensors) -> Tensor | None:
    """(IA)³'s vector where it says all without the base: of inputs, or of outputs where there is no bias to scale."""
    values, on_input = named["weight"], named["on_input"]
    if on_input.numel() != 1 or values.numel() < 2 or values.ndim != 1 or values.is_complex():
        return None
    inputs = bool(on_input.any())
    return 1 + (values[None] if inputs else values[:, None]).float() if inputs or has_no_bias(place) else None


def _weight(kind: str, name: str, place: str, base: Tensors | None) -> Tensor:
    if base is None:
        raise FileFormatError(
            f"'{name}' ({kind}) changes the base's own weights: read it with base=… (--base), or only inspect it"
        )
    if place not in base:
        raise FileFormatError(f"the base has no module '{place}': the file belongs to another base")
    return base[place]


def divisor(named: Tensors) -> int | None:
    """What the programs divide a module's alpha by; None where they apply no scale (LoKr of two whole factors)."""
    for suffix in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if suffix in named and named[suffix].ndim:
            return max(named[suffix].shape[0], 1)
    return None


def _alpha(name: str, alpha: Tensor) -> float:
    value = float(alpha.item()) if alpha.numel() == 1 and not alpha.is_complex() else -1.0
    if not 0 < value <= 65536:
        raise FileFormatError(
            f"'{name}' has no usable alpha ({list(alpha.shape)}, {value}): no scale can be made of it"
        )
    return value


def _without_mid(name: str, named: Tensors) -> dict[str, Tensor]:
    """Fold a Tucker core [r, r, kh, kw] into the down factor: the same ΔW as plain LoRA over a convolution."""
    down, middle = named["lora_down.weight"].float(), named["lora_mid.weight"].float()
    small = middle.ndim == 4 and max(middle.shape[2:]) <= _KERNEL
    if not small or down.ndim < 2 or middle.shape[:2] != (down.shape[0], down.shape[0]):
        raise FileFormatError(f"'{name}': a lora_mid of {list(middle.shape)} does not fit a rank of {down.shape[0]}")
    folded = torch.einsum("rskl,si->rikl", middle, down.flatten(1))
    rest = {suffix: tensor for suffix, tensor in named.items() if suffix != "lora_mid.weight"}
    return {**rest, "lora_down.weight": folded}


def _decomposed(
    name: str, place: str, path: str, plain: Module, magnitudes: Tensor, family: str, base: Tensors | None
) -> Module:
    """DoRA: by output over LoRA it is a method of this package; by input, or over LoHa and LoKr, a whole difference."""
    low = plain.method == "lora"
    outputs = plain.parts["lora_B.weight"].shape[0] if low else 0
    if low and magnitudes.numel() == outputs and magnitudes.shape[0] == outputs:
        shape = (1, -1, 1, 1) if plain.parts["lora_B.weight"].ndim == 4 else (-1,)
        parts = {**plain.parts, "lora_magnitude_vector": magnitudes.reshape(shape)}
        return Module("dora", parts, plain.rank, plain.alpha)
    weight = _weight("DoRA by input" if low else "DoRA", name, place, base)
    added = dense(plain, path, family)
    if added.numel() != weight.numel():
        raise FileFormatError(f"'{name}' does not fit a weight of {list(weight.shape)}: another base's file")
    by_output = magnitudes.shape[0] == weight.shape[0] and magnitudes.numel() == weight.shape[0]
    if not by_output and magnitudes.numel() != weight.shape[1]:
        raise FileFormatError(
            f"'{name}' has magnitudes of shape {list(magnitudes.shape)} that fit no axis of its weight"
        )
    change = turned.dora(added, magnitudes, weight, axis=0 if by_output else 1)
    return Module("full", {"weight.diff": change}, 1, 1.0)


def _over_own_rows(place: str, module: Module, base: Tensors | None) -> Module:
    """DoRA whose magnitudes stand over ‖W‖ by row, as ComfyUI divides them: over ‖W + ΔV‖, as this package has it."""
    if module.method != "dora":
        return module
    rows = _weight("DoRA for ComfyUI", place, place, base).float().flatten(1)
    up, down = module.parts["lora_B.weight"].float().flatten(1), module.parts["lora_A.weight"].float().flatten(1)
    if rows.shape != (up.shape[0], down.shape[1]):
        raise FileFormatError(f"'{place}' does not fit a weight of {list(rows.shape)}: another base's file")
    ratio = (rows + module.alpha / module.rank * (up @ down)).norm(dim=1) / rows.norm(dim=1)
    magnitudes = module.parts["lora_magnitude_vector"].float()
    parts = {**module.parts, "lora_magnitude_vector": magnitudes * ratio.reshape(magnitudes.shape)}
    return Module("dora", parts, module.rank, module.alpha)


def _arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a LoKr spec needs beside rank and alpha, from the network's arguments where the file has them."""
    try:
        arguments = json.loads(metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return {}  # free text of another program; the tensors say enough to read the file
    if not isinstance(arguments, dict):
        return {}
    known: dict[str, Any] = {}
    factor = str(arguments.get("factor", ""))
    if factor.lstrip("-").isascii() and factor.lstrip("-").isdigit() and len(factor) < 6:
        known["factor"] = max(-1, min(int(factor), 4096))
    if "decompose_both" in arguments:
        known["decompose_both"] = str(arguments["decompose_both"]).lower() == "true"
    return known

"""InvokeAI: probes the base by the widths in the file, converts SDXL's original names, then finds modules by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from visionpeft.files.readers.rules import (
    NEEDS_BASE,
    OTHER_AXIS,
    Change,
    File,
    Model,
    Parts,
    Reading,
    Whole,
    dora,
    flat,
    grouped,
    loha,
    lokr,
    product,
    scalar,
    whole,
)

_OTHERS = {"full": "diff", "ia3": "on_input", "norm": "w_norm"}
"""Kinds of layer that are no low-rank ones -> what tells them."""

WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"}
"""Width of the text states -> base."""

_PREFIXES = {"sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}}
_ORIGINAL = ("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_")


def apply(file: File, model: Model) -> Reading:
    """Refuse what the probe or the conversion does not know; keys of modules that are not there are left out."""
    groups = grouped(file.tensors)
    width = _text_width(groups)
    gate = f"a text width of {width}" if width else "no module tells the width of the text"
    gate += f" is {WIDTHS[width]}" if width in WIDTHS else ""
    if refusal := _probe(groups, model, width):
        return Reading.refused(refusal, gate, passed=False)
    if refusal := _mixed(groups, model.family):
        return Reading.refused(refusal, gate)
    reading, modules = Reading(gate=gate), _modules(model, original=_is_original(groups))
    for name, parts in groups.items():
        if _layer_kind(parts) is None:
            return Reading.refused(f"{name}: unknown kind of layer {sorted(parts)}", gate)
        place = modules.get(name)
        if place is None:
            if model.family == "sdxl" and name.startswith("lora_unet_") and _is_original(groups):
                return Reading.refused(f"{name}: no SDXL module of that name", gate)
            reading.ignored += [f"{name}.{suffix}" for suffix in parts]
            continue
        change = _change(parts, model.shapes[place], model.weight(place), reading)
        if change is None and not reading.notes:
            return Reading.refused(f"{name}: shapes do not fit", gate)
        if change is not None:
            reading.changes[place] = change
            reading.add_bias(place, parts, model.shapes[place][0])
    return reading


def _probe(groups: Iterable[str], model: Model, width: int | None) -> str:
    """Why the file is not recognised as a LoRA of this family; "" where it is."""
    if not any(name.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")) for name in groups):
        return "the keys are none of a LoRA that InvokeAI knows"
    if width is None:
        return "unrecognized token vector length: no cross-attention and no text encoder in the file"
    if width in WIDTHS and WIDTHS[width] != model.family:
        return f"taken for a LoRA of {WIDTHS[width]} (width {width}) instead of {model.family}"
    return "" if width in WIDTHS or width in _own_widths(model) else f"unrecognized token vector length {width}"


def _own_widths(model: Model) -> set[int]:
    """Text widths of the model itself: a base of other sizes than the published ones counts as known."""
    ends = (
        "attn2.to_k",
        "attn2.to_v",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
    )
    return {shape[1] for place, shape in model.shapes.items() if place.endswith(ends)} - set(WIDTHS)


def _text_width(groups: Mapping[str, Parts]) -> int | None:
    """The first width that tells the base: of cross-attention, of SD's text encoder, or both of SDXL's together."""
    encoders: dict[str, int] = {}
    for name, parts in groups.items():
        crossing = name.startswith("lora_unet_") and name.endswith(("attn2_to_k", "attn2_to_v"))
        timed = name.startswith("lora_unet_") and name.endswith("time_emb_proj") and "lora_down.weight" in parts
        text = name.startswith("lora_te") and "_self_attn_" in name
        width = _inputs(parts, text=text) if crossing or timed or text else None
        if width is None:
            continue
        if not name.startswith(("lora_te1_", "lora_te2_")):
            return width
        encoders[name[:8]] = width
        if len(encoders) == 2:
            return sum(encoders.values())
    return None


def _inputs(parts: Parts, *, text: bool) -> int | None:
    for suffix in ("lora_down.weight", "hada_w1_b", "diff"):
        if suffix in parts and parts[suffix].ndim > 1:
            return parts[suffix].shape[1]
    if text and "weight" in parts:  # (IA)³ is recognised by its text encoder alone
        return parts["weight"].shape[0]
    if "lokr_w1" in parts and "lokr_w2" in parts:  # factorised sides are not recognised
        return parts["lokr_w1"].shape[1] * parts["lokr_w2"].shape[1]
    return None


def _is_original(groups: Iterable[str]) -> bool:
    return any(
        name.removeprefix("lora_unet_").startswith(_ORIGINAL) for name in groups if name.startswith("lora_unet_")
    )


def _mixed(groups: Iterable[str], family: str) -> str:
    flats = [name.removeprefix("lora_unet_") for name in groups if name.startswith("lora_unet_")]
    original = [name.startswith(_ORIGINAL) for name in flats]
    mixed = family == "sdxl" and any(original) and not all(original)
    return "SDXL keys in both namings: partially converted" if mixed else ""


def _modules(model: Model, *, original: bool) -> dict[str, str]:
    modules = {f"lora_unet_{flat(path)}": place for place, path in model.places("unet")}
    if original and model.family == "sdxl":
        modules = {f"lora_unet_{name}": place for place, name in model.original.items()}
    prefixes = _PREFIXES.get(model.family, {"text_encoder": "lora_te_"})
    for component, prefix in prefixes.items():
        modules |= {prefix + flat(path): place for place, path in model.places(component)}
    return modules


def _layer_kind(parts: Parts) -> str | None:
    if "dora_scale" in parts:
        return "dora" if {"lora_up.weight", "lora_down.weight"} <= set(parts) else None
    if "lora_up.weight" in parts:
        return "lora" if "lora_down.weight" in parts else None
    if "hada_w1_a" in parts:
        return "loha"
    if "lokr_w1" in parts or "lokr_w1_a" in parts:
        return "lokr"
    return next((kind for kind, mark in _OTHERS.items() if mark in parts), None)


def _change(parts: Parts, shape: tuple[int, int], weight: Tensor | None, reading: Reading) -> Change | None:
    alpha, kind = scalar(parts.get("alpha")), _layer_kind(parts)
    if kind == "loha":
        return loha(parts, 1.0 if alpha is None else alpha / parts["hada_w1_b"].shape[0], shape)
    if kind == "lokr":
        return lokr(parts, alpha, shape)
    if kind in ("full", "norm"):
        return whole(parts["diff" if kind == "full" else "w_norm"].float(), shape)
    if kind == "ia3":
        return _scaled(parts, weight, reading)
    rank = parts["lora_down.weight"].shape[0]
    scale, middle = 1.0 if alpha is None else alpha / rank, parts.get("lora_mid.weight")
    change = product(parts["lora_up.weight"], parts["lora_down.weight"], scale, shape, middle)
    if kind == "lora" or change is None:
        return change
    if weight is None:
        reading.notes = [NEEDS_BASE]
        return None
    if alpha not in (None, rank):
        reading.notes = ["older versions apply the scale of DoRA twice"]
    if parts["dora_scale"].shape[0] != 1:
        reading.notes = [OTHER_AXIS]
    return dora(change, parts["dora_scale"], weight, norm="input")  # it reads magnitudes by input only


def _scaled(parts: Parts, weight: Tensor | None, reading: Reading) -> Change | None:
    """(IA)³: its vector times W, which is added; W has to be a matrix where outputs are scaled."""
    if weight is None:
        reading.notes = [NEEDS_BASE.replace("DoRA", "(IA)³")]
        return None
    values, inputs = parts["weight"].float().flatten(), bool(parts["on_input"].any())
    if weight.ndim != 2 or values.numel() != weight.shape[int(inputs)]:
        return None
    return Whole(weight.float() * (values if inputs else values[:, None]))

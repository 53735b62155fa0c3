"""ComfyUI: looks for the keys that it knows, module by module; what it does not know it logs and leaves out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionpeft.files.readers.rules import (
    GLORA,
    NEEDS_BASE,
    OTHER_LENGTH,
    Change,
    File,
    Model,
    Reading,
    dora,
    flat,
    glora,
    loha,
    lokr,
    product,
    scalar,
    turned,
    whole,
)

LORA_PAIRS = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)

_CLIP_LAYERS = ("mlp.fc1", "mlp.fc2", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj")


def apply(file: File, model: Model) -> Reading:
    """Never refuses: every key that it does not know is left out without a word to the user."""
    return read(file, key_map(model), model, recent=True)


def key_map(model: Model) -> dict[str, str]:
    """The names under which a module's tensors are looked for: name -> "component.path"."""
    names: dict[str, str] = {}
    for place, original in model.original.items():
        path = place.removeprefix("unet.")
        names[f"lora_unet_{original}"] = place
        names[f"lora_unet_{flat(path)}"] = place
        attention = path.replace(".to_", ".processor.to_")
        attention = attention.removesuffix(".0") if attention.endswith(".to_out.0") else attention
        names[attention] = names[f"unet.{attention}"] = place
        names[f"diffusion_model.{model.dotted[place]}"] = place
    for component, prefixes in clip_prefixes(model.family).items():
        for place, path in model.places(component):
            if path.startswith("text_model.encoder.layers.") and path.endswith(_CLIP_LAYERS):
                names |= {f"{prefix}_{flat(path)}": place for prefix in prefixes}
                names[f"{component}.{path}"] = place
    return names


def clip_prefixes(family: str) -> dict[str, tuple[str, ...]]:
    """Text encoder -> what the flat names of its modules begin with."""
    if family == "sdxl":
        return {"text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
    return {"text_encoder": ("lora_te", "lora_te1")}


def read(file: File, names: Mapping[str, str], model: Model, *, recent: bool = False) -> Reading:
    """Collect the ΔW of every known module, and the keys that were never looked at.

    Args:
        file: the file.
        names: name -> "component.path".
        model: what is loaded.
        recent: whether OFT, BOFT and GLoRA's present layout are known.
    """
    reading = Reading()
    used: set[str] = set()
    for name, place in names.items():
        change = _module(file.tensors, name, place, model, used, reading)
        if change is None and recent:
            change = _turned(file.tensors, name, place, model, used, reading)
        if change is None:
            change = _generalized(file.tensors, name, place, model, used, reading, new=recent)
        if change is not None:
            reading.changes[place] = change
    reading.ignored = [key for key in file.tensors if key not in used]
    return reading


def _turned(
    tensors: Mapping[str, Tensor], name: str, place: str, model: Model, used: set[str], reading: Reading
) -> Change | None:
    """OFT and BOFT: alpha is the limit itself; OFT's rescaling is not applied, and BOFT fails without an alpha."""
    blocks, alpha = tensors.get(f"{name}.oft_blocks"), scalar(tensors.get(f"{name}.alpha"))
    if blocks is None or blocks.ndim not in (3, 4):
        return None
    used |= {key for suffix in ("oft_blocks", "rescale", "alpha") if (key := f"{name}.{suffix}") in tensors}
    if blocks.ndim == 4 and alpha is None:
        reading.notes.append(f"{name}: BOFT without an alpha fails, logged and left out")
        return None
    if (weight := model.weight(place)) is None:
        reading.notes = [NEEDS_BASE.replace("DoRA", "OFT")]
        return None
    rescale = tensors.get(f"{name}.rescale") if blocks.ndim == 4 else None
    return turned(blocks, rescale, alpha or 0.0, weight)


def _generalized(
    tensors: Mapping[str, Tensor], name: str, place: str, model: Model, used: set[str], reading: Reading, *, new: bool
) -> Change | None:
    """GLoRA, whose alpha is divided by the rank, the shorter side of its factors."""
    parts = {key: tensors[full] for key in GLORA if (full := f"{name}.{key}") in tensors}
    if len(parts) < len(GLORA):
        return None
    used |= {f"{name}.{key}" for key in (*GLORA, "alpha") if f"{name}.{key}" in tensors}
    if (weight := model.weight(place)) is None:
        reading.notes = [NEEDS_BASE.replace("DoRA", "GLoRA")]
        return None
    alpha = scalar(tensors.get(f"{name}.alpha"))
    change = glora(parts, 1.0 if alpha is None else alpha / max(min(parts["a1.weight"].shape[:2]), 1), weight, new=new)
    if change is None:
        reading.notes.append(f"{name}: GLoRA of this layout is not read")
    return change


def _module(
    tensors: Mapping[str, Tensor], name: str, place: str, model: Model, used: set[str], reading: Reading
) -> Change | None:
    own = _own(tensors, name)
    if not own:
        return None
    alpha, shape = scalar(own.get("alpha")), model.shapes[place]
    used |= {f"{name}.{suffix}" for suffix in ("alpha", "dora_scale") if suffix in own}
    change = None
    for up, down in LORA_PAIRS:
        if name + up in tensors and name + down in tensors:
            used |= {name + up, name + down}
            rank = tensors[name + down].shape[0]
            scale, middle = 1.0 if alpha is None else alpha / rank, None
            if up == LORA_PAIRS[0][0] and (middle := tensors.get(f"{name}.lora_mid.weight")) is not None:
                used.add(f"{name}.lora_mid.weight")
            change = product(tensors[name + up], tensors[name + down], scale, shape, middle)
            break
    else:
        change = _lycoris(own, name, alpha, shape, used)
    reading.add_bias(place, own, shape[0])
    if change is None:
        if set(own) - {"alpha", "diff_b"}:
            reading.notes.append(f"{name}: shapes do not fit, logged and left out")
        return None
    return _decomposed(change, own, place, model, reading)


def _own(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    suffixes = (
        "alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
        "diff", "diff_b", "w_norm", "b_norm",
    )  # fmt: skip
    own = {suffix: tensors[f"{name}.{suffix}"] for suffix in suffixes if f"{name}.{suffix}" in tensors}
    own |= {up: tensors[name + up] for up, _ in LORA_PAIRS if name + up in tensors}
    return own


def _lycoris(
    own: Mapping[str, Tensor], name: str, alpha: float | None, shape: tuple[int, int], used: set[str]
) -> Change | None:
    used |= {f"{name}.{suffix}" for suffix in own if suffix.startswith(("hada_", "lokr_", "diff", "w_norm", "b_norm"))}
    if "hada_w1_a" in own:
        return loha(own, 1.0 if alpha is None else alpha / own["hada_w1_b"].shape[0], shape)
    if any(suffix.startswith("lokr_") for suffix in own):
        return lokr(own, alpha, shape)
    for suffix in ("diff", "w_norm"):
        if suffix in own:
            return whole(own[suffix].float(), shape)
    return None


def _decomposed(change: Change, own: Mapping[str, Tensor], place: str, model: Model, reading: Reading) -> Change | None:
    """DoRA: magnitudes by output are divided by the norm of the base's rows, W without ΔV; by input as LyCORIS does."""
    if "dora_scale" not in own:
        return change
    if model.weights is None:
        reading.notes = [NEEDS_BASE]
        return None
    weight = model.weights[place]
    by_output = own["dora_scale"].shape[0] == weight.shape[0]
    reading.notes = [OTHER_LENGTH] if by_output else reading.notes
    return dora(change, own["dora_scale"], weight, norm="base" if by_output else "input")

"""AUTOMATIC1111: translates flat names to the original model's module names, then looks them up in the loaded model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from visionpeft.files.readers.rules import (
    GLORA,
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
    glora,
    grouped,
    loha,
    lokr,
    product,
    scalar,
    turned,
    whole,
)

_KINDS = (
    ("lora", ("lora_up.weight", "lora_down.weight")),
    ("lora", ("lora_B.weight", "lora_A.weight")),
    ("loha", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    ("ia3", ("weight",)),
    ("oft", ("oft_blocks",)),
    ("full", ("diff",)),
    ("norm", ("w_norm", "b_norm")),
    ("glora", (*GLORA, "alpha")),
)

_INSIDE = {
    "conv1": "in_layers_2", "conv2": "out_layers_3", "norm1": "in_layers_0", "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection",
}  # fmt: skip

_RESBLOCKS = {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj", "self_attn": "attn"}


def apply(file: File, model: Model) -> Reading:
    """Keys split at their first dot; unknown modules are logged, an unknown kind of module drops the whole file."""
    version = _version(file.metadata)
    gate = f"its header says {version or 'nothing, so it is listed with any base'}"
    if version not in ("", model.family):
        reason = f"hidden in the list while a model of {model.family} is loaded: it passes for {version}"
        return Reading.refused(reason, gate, passed=False)
    reading, layers = Reading(gate=gate), _layers(model)
    for name, parts in grouped(file.tensors).items():
        place = layers.get(_original(name, model)) or layers.get(_sdxl(name))
        if place is None:
            reading.ignored += [f"{name}.{suffix}" for suffix in parts]
            continue
        kind = _kind(parts)
        if kind is None:
            return Reading.refused(
                f"{name}: no known kind of module has {sorted(parts)}; the whole file is dropped", gate
            )
        change = _change(kind, parts, model.shapes[place], model.weight(place), reading)
        if change is not None:
            reading.changes[place] = change
            reading.add_bias(place, parts, model.shapes[place][0])
    return reading


def _version(metadata: Mapping[str, str]) -> str:
    """The base that the file passes for: it is listed with no other; "" without metadata, with any."""
    if not metadata:
        return ""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "sdxl"
    return "sd2" if metadata.get("ss_v2") == "True" else "sd1"


def _layers(model: Model) -> dict[str, str]:
    """The loaded model's flat module names -> "component.path"."""
    layers = {f"diffusion_model_{original}": place for place, original in model.original.items()}
    first = {"sd1": "transformer_text_model_encoder_layers_", "sdxl": "0_transformer_text_model_encoder_layers_"}
    resblocks = {"sd2": ("text_encoder", "model_"), "sdxl": ("text_encoder_2", "1_model_")}
    if model.family in first:
        for place, path in model.places("text_encoder"):
            layers[first[model.family] + flat(path.removeprefix("text_model.encoder.layers."))] = place
    if model.family in resblocks:
        component, prefix = resblocks[model.family]
        for place, path in model.places(component):
            name = _resblock(flat(path.removeprefix("text_model.encoder.layers.")))
            layers[f"{prefix}transformer_resblocks_{name}"] = place
    return layers


def _resblock(name: str) -> str:
    for old, new in _RESBLOCKS.items():
        name = name.replace(old, new)
    return name


def _original(name: str, model: Model) -> str:
    """Translate diffusers' flat names; the published models have three places a level, small ones fewer."""
    places = model.layers + 1
    if match := re.match(r"lora_unet_(conv_in|conv_out)$", name):
        return "diffusion_model_" + {"conv_in": "input_blocks_0_0", "conv_out": "out_2"}[match[1]]
    if match := re.match(r"lora_unet_time_embedding_linear_(\d)$", name):
        return f"diffusion_model_time_embed_{2 * int(match[1]) - 2}"
    if match := re.match(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)$", name):
        index = places * int(match[2]) + int(match[4]) + (match[1] == "down")
        inner = _INSIDE.get(match[5], match[5]) if match[3] == "resnets" else match[5]
        side = "input" if match[1] == "down" else "output"
        return f"diffusion_model_{side}_blocks_{index}_{1 if match[3] == 'attentions' else 0}_{inner}"
    if match := re.match(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)$", name):
        inner = _INSIDE.get(match[3], match[3]) if match[1] == "resnets" else match[3]
        return f"diffusion_model_middle_block_{1 if match[1] == 'attentions' else 2 * int(match[2])}_{inner}"
    if match := re.match(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv$", name):
        return f"diffusion_model_input_blocks_{places * (int(match[1]) + 1)}_0_op"
    if match := re.match(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv$", name):
        return f"diffusion_model_output_blocks_{places * int(match[1]) + places - 1}_{2 if int(match[1]) else 1}_conv"
    return _text(name, model.family)


def _text(name: str, family: str) -> str:
    if match := re.match(r"lora_te_text_model_encoder_layers_(\d+)_(.+)$", name):
        if family == "sd2":
            return f"model_transformer_resblocks_{match[1]}_{_resblock(match[2])}"
        return f"transformer_text_model_encoder_layers_{match[1]}_{match[2]}"
    if match := re.match(r"lora_te2_text_model_encoder_layers_(\d+)_(.+)$", name):
        return f"1_model_transformer_resblocks_{match[1]}_{_resblock(match[2])}"
    return name


def _sdxl(name: str) -> str:
    """A second try for names of the original code and of SDXL's first text encoder."""
    if name.startswith("lora_te1_text_model"):
        return name.replace("lora_te1_text_model", "0_transformer_text_model")
    return name.replace("lora_unet", "diffusion_model")


def _kind(parts: Parts) -> str | None:
    for kind, needed in _KINDS:
        if all(suffix in parts for suffix in needed):
            return kind
    sides = all(f"lokr_w{n}" in parts or {f"lokr_w{n}_a", f"lokr_w{n}_b"} <= set(parts) for n in "12")
    return "lokr" if sides else None


def _change(kind: str, parts: Parts, shape: tuple[int, int], weight: Tensor | None, reading: Reading) -> Change | None:
    alpha = scalar(parts.get("alpha"))
    change: Change | None = None
    if kind == "lora":
        up = parts["lora_up.weight"] if "lora_up.weight" in parts else parts["lora_B.weight"]
        down = parts["lora_down.weight"] if "lora_down.weight" in parts else parts["lora_A.weight"]
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        change = product(up, down, scale, shape, parts.get("lora_mid.weight"))
    elif kind == "loha":
        change = loha(parts, 1.0 if alpha is None else alpha / parts["hada_w1_b"].shape[0], shape)
    elif kind == "lokr":
        change = lokr(parts, alpha, shape)
    elif kind in ("full", "norm"):
        change = whole(parts["diff" if kind == "full" else "w_norm"].float(), shape)
    elif kind == "ia3":
        change = _scaled(parts, weight, reading)
    elif kind == "oft":
        change = _turned(parts, alpha, weight, reading)
    elif kind == "glora":
        change = _generalized(parts, weight, reading)
    if change is None or "dora_scale" not in parts:
        return change
    if weight is None:
        reading.notes = [NEEDS_BASE]
        return None
    if parts["dora_scale"].shape[0] != 1:
        reading.notes = [OTHER_AXIS]
    return dora(change, parts["dora_scale"], weight, norm="input")  # it knows magnitudes by input only


def _turned(parts: Parts, alpha: float | None, weight: Tensor | None, reading: Reading) -> Change | None:
    """OFT and BOFT, whose alpha is a limit for each output."""
    if weight is None:
        reading.notes = [NEEDS_BASE.replace("DoRA", "OFT")]
        return None
    return turned(parts["oft_blocks"], parts.get("rescale"), (alpha or 0.0) * weight.shape[0], weight)


def _generalized(parts: Parts, weight: Tensor | None, reading: Reading) -> Change | None:
    """GLoRA of linear layers as files had it before May 2024; its alpha is not looked at."""
    if weight is None:
        reading.notes = [NEEDS_BASE.replace("DoRA", "GLoRA")]
        return None
    change = glora(parts, 1.0, weight, new=False) if parts["a1.weight"].ndim == 2 else None
    if change is None:
        reading.notes.append("GLoRA of this layout is not read")
    return change


def _scaled(parts: Parts, weight: Tensor | None, reading: Reading) -> Change | None:
    """(IA)³ of a linear layer: its vector times W, which is added."""
    if weight is None:
        reading.notes = [NEEDS_BASE.replace("DoRA", "(IA)³")]
        return None
    values = parts["weight"].float().flatten()
    axis = 1 if "on_input" in parts and parts["on_input"].any() else 0
    if weight.ndim != 2 or values.numel() != weight.shape[axis]:
        return None
    return Whole(weight.float() * (values if axis else values[:, None]))

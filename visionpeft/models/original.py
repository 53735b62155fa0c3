"""The original layout of Stable Diffusion checkpoints: its key names as tables, and the sizes that its shapes tell.

Pure functions of a table of tensors; they work on tensors without values (device "meta") too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from visionpeft.errors import BaseModelError

State = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
PROJECTION = "text_projection"  # OpenCLIP's
# family -> text encoder -> (prefix, whether it is an OpenCLIP model)
ENCODERS = {
    "sd1": {"text_encoder": ("cond_stage_model.transformer.", False)},
    "sd2": {"text_encoder": ("cond_stage_model.model.", True)},
    "sdxl": {
        "text_encoder": ("conditioner.embedders.0.transformer.", False),
        "text_encoder_2": ("conditioner.embedders.1.model.", True),
    },
}

_RESNET: Rules = (
    (r"in_layers\.0\.", "norm1."),
    (r"in_layers\.2\.", "conv1."),
    (r"emb_layers\.1\.", "time_emb_proj."),
    (r"out_layers\.0\.", "norm2."),
    (r"out_layers\.3\.", "conv2."),
    (r"skip_connection\.", "conv_shortcut."),
)
_UNET_ENDS: Rules = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^label_emb\.0\.0\.", "add_embedding.linear_1."),
    (r"^label_emb\.0\.2\.", "add_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"^middle_block\.0\.", "mid_block.resnets.0."),
    (r"^middle_block\.1\.", "mid_block.attentions.0."),
    (r"^middle_block\.2\.", "mid_block.resnets.1."),
)
_VAE: Rules = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
_OPEN_CLIP: Rules = (
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def family_name(state: State) -> str:
    """Return "sd1", "sd2" or "sdxl" by the text encoders in a checkpoint.

    Raises:
        BaseModelError: not a whole checkpoint of these; says what is missing.
    """
    found = [
        name for name, encoders in ENCODERS.items() if all(_holds(state, prefix) for prefix, _ in encoders.values())
    ]
    if not found:
        raise BaseModelError("No text encoder of SD 1.x, SD 2.x or SDXL is in it; use a whole checkpoint.")
    for what, prefix in (("UNet", UNET), ("autoencoder", VAE)):
        if not _holds(state, prefix):
            raise BaseModelError(f"No {what} is in it (keys '{prefix}…'); use a whole checkpoint.")
    return found[0]


def _holds(state: State, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in state)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _per_block(unet: Collection[str]) -> int:
    """Input blocks per level: the first downsampling's number, or all of them where there is one level."""
    downs = [int(m[1]) for name in unet if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name))]
    numbers = [int(m[1]) for name in unet if (m := re.match(r"input_blocks\.(\d+)\.", name))]
    return min(downs, default=max(numbers) + 1)


def unet_state(state: State) -> dict[str, Tensor]:
    """The UNet's tensors under diffusers' names."""
    unet = part(state, UNET)
    names = unet_names(unet)
    return {names[key]: tensor for key, tensor in unet.items()}


def unet_names(keys: Collection[str]) -> dict[str, str]:
    """The UNet's keys behind ``UNET`` -> diffusers' names."""
    per = _per_block(keys)
    return {key: _unet_name(key, per) for key in keys}


def _unet_name(name: str, per: int) -> str:
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", name)
    if found is None or name.startswith("input_blocks.0."):
        return _renamed(_renamed(name, _UNET_ENDS), _RESNET)
    side, rest = found[1], found[4]
    number, place = int(found[2]) - (side == "input"), int(found[3])
    block = f"{'down' if side == 'input' else 'up'}_blocks.{number // per}"
    if side == "input" and rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if side == "output" and place > 0 and rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    kind = "resnets" if place == 0 else "attentions"
    return f"{block}.{kind}.{number % per}.{_renamed(rest, _RESNET) if place == 0 else rest}"


def unet_config(state: State, family: str, prediction_type: str) -> dict[str, Any]:
    """The UNet's configuration, as its shapes tell it.

    Raises:
        BaseModelError: an inpainting or depth UNet, which has more than 4 input channels.
    """
    unet = part(state, UNET)
    if unet["input_blocks.0.0.weight"].shape[1] != unet["out.2.weight"].shape[0]:
        raise BaseModelError("Its UNet is for inpainting or depth; use a checkpoint for text to image.")
    per = _per_block(unet)
    levels = (max(int(name.split(".")[1]) for name in unet if name.startswith("input_blocks.")) - 1) // per + 1
    channels = [unet[f"input_blocks.{1 + level * per}.0.out_layers.3.weight"].shape[0] for level in range(levels)]
    depths = [_depth(unet, f"input_blocks.{1 + level * per}.1") for level in range(levels)]
    middle = _depth(unet, "middle_block.1")
    linear = unet["middle_block.1.proj_in.weight"].ndim == 2
    config: dict[str, Any] = {
        "sample_size": {"sd1": 64, "sd2": 96 if prediction_type == "v_prediction" else 64, "sdxl": 128}[family],
        "block_out_channels": tuple(channels),
        "layers_per_block": per - 1,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), middle),
        "cross_attention_dim": unet["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        # heads cannot be told from shapes: 8 in SD 1.x, heads of 64 channels since
        "attention_head_dim": 8 if family == "sd1" else tuple(max(1, width // 64) for width in channels),
        "use_linear_projection": linear,
    }
    return config | (_added(state, unet) if family == "sdxl" else {})


def _depth(unet: State, place: str) -> int:
    prefix = f"{place}.transformer_blocks."
    return len({name.removeprefix(prefix).split(".")[0] for name in unet if name.startswith(prefix)})


def _added(state: State, unet: State) -> dict[str, Any]:
    width = unet["label_emb.0.0.weight"].shape[1]
    pooled = state[ENCODERS["sdxl"]["text_encoder_2"][0] + "text_projection"].shape[1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // 6,
        "projection_class_embeddings_input_dim": width,
    }


def vae_state(state: State) -> dict[str, Tensor]:
    """The autoencoder's tensors under diffusers' names; its attention's 1×1 convolutions become linear layers."""
    vae, found = part(state, VAE), dict[str, Tensor]()
    for key, new in vae_names(vae).items():
        square = ".attentions.0.to_" in new and vae[key].ndim == 4
        found[new] = vae[key][:, :, 0, 0] if square else vae[key]
    return found


def vae_names(keys: Collection[str]) -> dict[str, str]:
    """The autoencoder's keys behind ``VAE`` -> diffusers' names; those of its training are left out."""
    top = max(int(m[1]) for name in keys if (m := re.match(r"decoder\.up\.(\d+)\.", name)))

    def flipped(key: str) -> str:
        return re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{top - int(m[1])}.", key)

    return {key: _renamed(flipped(key), _VAE) for key in keys if not key.startswith(("loss.", "model_ema."))}


def vae_config(state: State, family: str) -> dict[str, Any]:
    """The autoencoder's configuration, as its shapes tell it."""
    vae = part(state, VAE)
    levels = len({name.split(".")[2] for name in vae if name.startswith("encoder.down.")})
    layers = len({name.split(".")[4] for name in vae if name.startswith("encoder.down.0.block.")})
    return {
        "block_out_channels": tuple(
            vae[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)
        ),
        "layers_per_block": layers,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": vae["decoder.conv_in.weight"].shape[1],
        "sample_size": 1024 if family == "sdxl" else 512,
        "scaling_factor": 0.13025 if family == "sdxl" else 0.18215,
    }


def text_state(state: State, family: str, encoder: str) -> dict[str, Tensor]:
    """A text encoder's tensors under transformers' names, with the prefix `text_model.`.

    SD 2.x reads OpenCLIP's last layer but one, so its last layer and its projection are left out.
    """
    prefix, open_clip = ENCODERS[family][encoder]
    found, new = part(state, prefix), dict[str, Tensor]()
    for key, names in text_names(found, family, encoder).items():
        tensor = found[key].mT if open_clip and key == PROJECTION else found[key]
        parts = [third.clone() for third in tensor.chunk(3)] if len(names) == 3 else [tensor]
        new |= dict(zip(names, parts, strict=True))
    return new


def text_names(keys: Iterable[str], family: str, encoder: str) -> dict[str, tuple[str, ...]]:
    """A text encoder's keys behind its prefix -> transformers' names: three for OpenCLIP's joined q, k and v.

    OpenCLIP's ``PROJECTION`` is the transpose of transformers'.
    """
    keys = list(keys)
    if not ENCODERS[family][encoder][1]:
        return {key: (_with_model(key),) for key in keys if not key.endswith("position_ids")}
    last = max(int(key.split(".")[2]) for key in keys if key.startswith("transformer.resblocks."))
    skipped = (f"transformer.resblocks.{last}.", PROJECTION) if family == "sd2" else ()
    return {key: _open_clip(key) for key in keys if key != "logit_scale" and not key.startswith(skipped or "\0")}


def _with_model(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def _open_clip(key: str) -> tuple[str, ...]:
    new = _renamed(key, _OPEN_CLIP)
    if joined := re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", new):
        return tuple(f"{joined[1]}.self_attn.{letter}_proj.{joined[2]}" for letter in "qkv")
    return (new,)


def text_config(text: State, *, open_clip: bool) -> dict[str, Any]:
    """A text encoder's configuration from its tensors under transformers' names."""
    words, width = text["text_model.embeddings.token_embedding.weight"].shape
    layers = {name.split(".")[3] for name in text if name.startswith("text_model.encoder.layers.")}
    projection = text.get("text_projection.weight")
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": text["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": text["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }

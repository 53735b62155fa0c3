"""Writes a pipeline's weights in the original layout, by tables of its own: the other half of the loader's tests."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

INNER = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def places(unet):
    """diffusers module path -> original path, of every resnet, attention and resampler."""
    found, number = dict(ENDS), 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            found[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            found[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            found[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    for path, name in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        found[f"mid_block.{path}"] = f"middle_block.{name}"
    number = 0
    for i, block in enumerate(unet.up_blocks):
        last = len(block.resnets) - 1
        for j in range(last + 1):
            found[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            found[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            if j == last and block.upsamplers:
                at = 2 if hasattr(block, "attentions") else 1
                found[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number}.{at}.conv"
            number += 1
    return found


def original_unet(unet):
    table, out = places(unet), {}
    for key, value in unet.state_dict().items():
        place = max((p for p in table if key.startswith(p + ".")), key=len)
        rest = key.removeprefix(place + ".")
        if ".resnets." in f".{place}." or "resnets" in place:
            head, _, tail = rest.partition(".")
            rest = f"{INNER[head]}.{tail}"
        out[f"model.diffusion_model.{table[place]}.{rest}"] = value
    return out


def original_vae(vae):
    levels, out = len(vae.config.block_out_channels), {}
    words = [
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."), ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
        (".resnets.", ".block."), ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"),
        ("down_blocks.", "down."),
    ]  # fmt: skip
    for key, value in vae.state_dict().items():
        name = key
        for new, old in words:
            name = name.replace(new, old)
        for i in range(levels):
            name = name.replace(f"up_blocks.{i}.", f"up.{levels - 1 - i}.")
        square = "mid.attn_1." in name and name.endswith("weight") and "norm" not in name
        out[f"first_stage_model.{name}"] = value[:, :, None, None] if square else value
    return out


def nested(encoder):
    state = encoder.state_dict()
    return (
        state if any(k.startswith("text_model.") for k in state) else {f"text_model.{k}": v for k, v in state.items()}
    )


def original_clip(encoder, prefix):
    return {prefix + key: value for key, value in nested(encoder).items()} | {
        prefix + "text_model.embeddings.position_ids": torch.arange(77)[None]
    }


def original_open_clip(encoder, prefix, projection=None, extra_layer=False):
    state, out = nested(encoder), {prefix + "logit_scale": torch.ones(())}
    words = [
        ("text_model.embeddings.token_embedding", "token_embedding"), ("text_model.final_layer_norm", "ln_final"),
        ("text_model.encoder.layers.", "transformer.resblocks."), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj"),
    ]  # fmt: skip
    for key, value in state.items():
        if key == "text_projection.weight":
            out[prefix + "text_projection"] = value.T
        elif key.endswith("position_embedding.weight"):
            out[prefix + "positional_embedding"] = value
        elif ".q_proj." in key:
            joined = torch.cat([state[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
            layer, kind = key.split(".")[3], key.rpartition(".")[2]
            out[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = joined
        elif ".k_proj." not in key and ".v_proj." not in key:
            for new, old in words:
                key = key.replace(new, old)
            out[prefix + key] = value
    if projection is not None:
        out[prefix + "text_projection"] = projection
    if extra_layer:  # SD 2.x files hold one layer more than is read
        count = 1 + max(int(k.split("resblocks.")[1].split(".")[0]) for k in out if "resblocks." in k)
        out |= {k.replace("resblocks.0.", f"resblocks.{count}."): v + 1 for k, v in out.items() if "resblocks.0." in k}
    return out


def checkpoint(kind, unet, vae, first, second=None):
    """The state of a whole checkpoint, with what else such files hold."""
    state = original_unet(unet) | original_vae(vae) | {"betas": torch.ones(1000), "model_ema.decay": torch.ones(())}
    if kind == "sd1":
        return state | original_clip(first, "cond_stage_model.transformer.")
    if kind == "sd2":
        width = first.config.hidden_size
        return state | original_open_clip(first, "cond_stage_model.model.", torch.zeros(width, width), extra_layer=True)
    return (
        state
        | original_clip(first, "conditioner.embedders.0.transformer.")
        | original_open_clip(second, "conditioner.embedders.1.model.")
    )


def unet_settings(kind, full):
    """The published UNets' settings, and small ones with the same properties."""
    wide, narrow = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    if kind == "sdxl":
        return {
            "sample_size": 128, "block_out_channels": (320, 640, 1280) if full else (32, 64, 64),
            "down_block_types": (wide[1], wide[0], wide[0]), "up_block_types": (narrow[0], narrow[0], narrow[1]),
            "transformer_layers_per_block": (1, 2, 10) if full else (1, 1, 2), "layers_per_block": 2 if full else 1,
            "cross_attention_dim": 2048 if full else 128, "attention_head_dim": (5, 10, 20) if full else (1, 1, 1),
            "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256 if full else 8,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280 if full else 6 * 8 + 64,
        }  # fmt: skip
    levels = (320, 640, 1280, 1280) if full else (32, 64)
    sd2 = kind == "sd2"
    return {
        "sample_size": 96 if sd2 else 64, "block_out_channels": levels, "layers_per_block": 2 if full else 1,
        "down_block_types": (wide[0],) * (len(levels) - 1) + (wide[1],),
        "up_block_types": (narrow[1],) + (narrow[0],) * (len(levels) - 1),
        "cross_attention_dim": (1024 if sd2 else 768) if full else 64,
        "attention_head_dim": tuple(max(1, c // 64) for c in levels) if sd2 else 8, "use_linear_projection": sd2,
    }  # fmt: skip


def text_settings(kind, second, full, words=49408):
    """The published text encoders' settings, and small ones."""
    open_clip = second or kind == "sd2"
    width, layers = {(False, False): (768, 12), (False, True): (1280, 32)}[(False, second)] if full else (64, 2)
    if kind == "sd2" and full:
        width, layers = 1024, 23
    return {
        "vocab_size": words, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "projection_dim": width, "max_position_embeddings": 77,
        "hidden_act": "gelu" if open_clip else "quick_gelu", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip


def parts(kind, full, words=49408):
    """(UNet, VAE, first text encoder, second or None) with random weights, or none at all on the meta device."""
    levels = (128, 256, 512, 512) if full else (32, 64)
    vae = AutoencoderKL(
        block_out_channels=levels, layers_per_block=2 if full else 1, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * len(levels), up_block_types=("UpDecoderBlock2D",) * len(levels),
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )  # fmt: skip
    unet = UNet2DConditionModel(**unet_settings(kind, full))
    first = CLIPTextModel(CLIPTextConfig(**text_settings(kind, False, full, words)))
    second = (
        CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(kind, True, full, words)))
        if kind == "sdxl"
        else None
    )
    return unet, vae, first, second

"""Tiny, seeded models with the real classes and the real tokenizer: what the tests of every part stand on."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = (
    "a",
    "photo",
    "of",
    "robot",
    "toy",
    "red",
    "blue",
    "dog",
    "background",
    "sks",
    "on",
    "at",
    "the",
    "left",
    "small",
)


def byte_symbols() -> list[str]:
    """The 256 stand-ins for bytes of byte-level BPE, in CLIP's order."""
    codes = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(code) for code in codes]
    return symbols + [chr(256 + place) for place in range(256 - len(codes))]


def merges_of(word: str) -> list[tuple[str, str]]:
    """The merges, from the left, that make one token of the word."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    return [("".join(pieces[:end]), pieces[end]) for end in range(1, len(pieces))]


def tiny_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte and ``WORDS``; begin and end of text are its last two tokens."""
    merges = list(dict.fromkeys(merge for word in WORDS for merge in merges_of(word)))
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def _text_config(tokenizer: CLIPTokenizer, width: int = 32, layers: int = 2, act: str = "quick_gelu") -> CLIPTextConfig:
    # end of text 2, as the published text encoders state it: pooling must not believe it
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, projection_dim=width, max_position_embeddings=77, hidden_act=act,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _unet(cross: int, **more: object) -> UNet2DConditionModel:
    settings: dict[str, object] = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": cross, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**(settings | more))


def _scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip


def _stable_diffusion(seed: int, prediction: str, act: str, **unet: object) -> StableDiffusionPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        pipeline = StableDiffusionPipeline(
            vae=_vae(), text_encoder=CLIPTextModel(_text_config(tokenizer, act=act)), tokenizer=tokenizer,
            unet=_unet(32, **unet), scheduler=_scheduler(prediction), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    return _quiet(pipeline)


def tiny_sd1(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x in small: 32 px, ε-prediction, text width 32."""
    return _stable_diffusion(seed, "epsilon", "quick_gelu")


def tiny_sd2(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 2.x in small: 32 px, v-prediction, linear projections around the transformer blocks."""
    return _stable_diffusion(seed, "v_prediction", "gelu", use_linear_projection=True, attention_head_dim=(2, 4))


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL in small: two text encoders (widths 32 and 32), pooled text and time ids added to the time embedding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = tiny_tokenizer(), tiny_tokenizer(pad="!")
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(), tokenizer=first, tokenizer_2=second,
            text_encoder=CLIPTextModel(_text_config(first)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(second, act="gelu")),
            unet=_unet(
                64, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32, attention_head_dim=(2, 4),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            ),
            scheduler=_scheduler("epsilon"), force_zeros_for_empty_prompt=True, add_watermarker=False,
        )  # fmt: skip
    return _quiet(pipeline)


def tiny_vit(seed: int = 0) -> ViTForImageClassification:
    """A vision transformer with three classes, 32 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=8, num_labels=3,
        )  # fmt: skip
        return ViTForImageClassification(config).eval()


def _quiet(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval()
    return pipeline

"""Shapes of the five networks, all of them classes of diffusers and transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from scripts.pretrain.scenes import PICTURE
from scripts.pretrain.tokenizer import LENGTH

WIDTH = 192
"""Width of text states, of the image tower and of their common space."""

LATENT = PICTURE // 4


def make_vae() -> AutoencoderKL:
    """96 × 96 × 3 pixels to 24 × 24 × 4 numbers and back."""
    return AutoencoderKL(
        block_out_channels=(48, 96, 128), layers_per_block=1, latent_channels=4, norm_num_groups=16,
        sample_size=PICTURE, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """The denoiser: most of its numbers work at 12 × 12 and 6 × 6."""
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(80, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=(2, 4, 6), norm_num_groups=16,
    )  # fmt: skip


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Four causal layers over 77 tokens; the text tower of the small CLIP and what the UNet listens to."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_image_tower() -> CLIPVisionModelWithProjection:
    """A ViT over patches of 8 × 8 pixels; the image tower of the small CLIP."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=PICTURE,
            patch_size=8,
            projection_dim=WIDTH,
        )
    )


class TextProjection(nn.Module):
    """What the small CLIP has beside its towers: the text projection and the temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        nn.init.normal_(self.text_projection.weight, std=WIDTH**-0.5)

    def forward(self, states: Tensor, ids: Tensor, end: int) -> Tensor:
        """Project the state at the end token: (texts, LENGTH, WIDTH) and ids (texts, LENGTH) to (texts, WIDTH)."""
        last = (ids == end).int().argmax(dim=1)
        return self.text_projection(states[torch.arange(len(ids), device=ids.device), last])


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's schedule of noise, predicting the noise."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer from a folder written by :func:`scripts.pretrain.tokenizer.write_tokenizer`."""
    return CLIPTokenizer.from_pretrained(folder)

"""Tiny random towers, saved as a hub would hold them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

WIDTH, SIDE = 16, 32
_SIZES = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_WORDS = ["a", "photo", "of", "red", "blue", "robot", "apple", "on", "background"]


def tokenizer() -> CLIPTokenizer:
    letters = sorted({letter for word in _WORDS for letter in word})
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def preprocessor(folder: Path, **changes: object) -> None:
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config | changes))


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(**_SIZES, image_size=SIDE, patch_size=8, projection_dim=12)


def _text(words: CLIPTokenizer) -> CLIPTextConfig:
    end = words.eos_token_id
    return CLIPTextConfig(
        **_SIZES, vocab_size=len(words), projection_dim=12, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end
    )


def clip(folder: Path) -> Path:
    """A CLIP with both towers."""
    torch.manual_seed(0)
    words = tokenizer()
    config = CLIPConfig(text_config=_text(words).to_dict(), vision_config=_vision().to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    preprocessor(folder)
    return folder


def dinov2(folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    Dinov2Model(Dinov2Config(**sizes, image_size=SIDE, patch_size=8)).save_pretrained(folder)
    preprocessor(folder, size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    return folder


def vit(folder: Path) -> Path:
    torch.manual_seed(2)
    ViTModel(ViTConfig(**_SIZES, image_size=SIDE, patch_size=8)).save_pretrained(folder)
    preprocessor(folder, size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    return folder


def base_with_clip(folder: Path) -> Path:
    """A base model's folder, as far as the embedded encoder reads it."""
    torch.manual_seed(3)
    words = tokenizer()
    words.save_pretrained(folder / "tokenizer")
    CLIPTextModel(_text(words)).half().save_pretrained(folder / "text_encoder")
    CLIPVisionModelWithProjection(_vision()).half().save_pretrained(folder / "clip")
    preprocessor(folder / "clip")
    weight = {"text_projection.weight": torch.randn(12, WIDTH).half(), "logit_scale": torch.ones(())}
    save_file(weight, folder / "clip" / "text_projection.safetensors")
    return folder

"""Write the trained networks as a diffusers pipeline folder in float16, with the small CLIP beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from scripts.pretrain import models
from scripts.pretrain.concepts import HELD_OUT, POSITIONS, STYLES, TEXTURES, TRAINED, names
from scripts.pretrain.scenes import PICTURE, SIZES_BY_NAME
from visionpeft.evaluation.scene import COLOURS

LIMIT_TOTAL, LIMIT_FILE = 40_000_000, 16 * 2**20
"""Bytes: all weights together, and one file."""


class Networks:
    """The five networks of the base, freshly made from the tokenizer."""

    def __init__(self, tokenizer_folder: Path) -> None:
        self.tokenizer_folder = tokenizer_folder
        self.tokenizer = models.load_tokenizer(tokenizer_folder)
        self.vae, self.unet = models.make_vae(), models.make_unet()
        self.text_encoder = models.make_text_encoder(self.tokenizer)
        self.image_tower, self.projection = models.make_image_tower(), models.TextProjection()

    def clip(self) -> nn.ModuleDict:
        """The three parts of the small CLIP, as one module to train and to store."""
        return nn.ModuleDict({"text": self.text_encoder, "image": self.image_tower, "projection": self.projection})

    def load(self, folder: Path) -> None:
        """Read the ``.safetensors`` that the training stages leave; networks without one stay random."""
        parts = {"vae": self.vae, "clip": self.clip(), "tower": self.image_tower, "unet": self.unet}
        for name, module in parts.items():
            path = folder / f"{name}.safetensors"
            if path.exists():
                module.load_state_dict(load_file(path))
        settings = folder / "vae.json"
        if settings.exists():
            self.vae.register_to_config(**json.loads(settings.read_text()))


def pack(networks: Networks, folder: Path, view: Path) -> None:
    """Write the whole base, with the subject view that a file holds.

    Raises:
        ValueError: the weights exceed the limits of 40 MB in all or 16 MiB a file.
    """
    shutil.rmtree(folder, ignore_errors=True)
    half = {
        "vae": networks.vae,
        "unet": networks.unet,
        "text_encoder": networks.text_encoder,
        "image_tower": networks.image_tower,
    }
    parts = {name: module.to(dtype=torch.float16) for name, module in half.items()}
    image_tower = parts.pop("image_tower")
    pipeline = StableDiffusionPipeline(
        **parts, tokenizer=networks.tokenizer, scheduler=models.make_scheduler(), safety_checker=None,
        feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="15MB")
    # Newer transformers write tokenizer.json alone; older ones and other programs read these.
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        shutil.copy(networks.tokenizer_folder / name, folder / "tokenizer" / name)
    image_tower.save_pretrained(folder / "clip", safe_serialization=True)
    _write_half(networks.projection.state_dict(), folder / "clip" / "text_projection.safetensors")
    _write_half(load_file(view), folder / "clip" / "subject_projection.safetensors")
    _name_as_before(folder / "text_encoder" / "model.safetensors")
    for part in ("text_encoder", "clip"):
        _load_as_float32(folder / part / "config.json")
    side = {"height": PICTURE, "width": PICTURE}
    CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, do_resize=True, resample=3).save_pretrained(
        folder / "clip"
    )
    (folder / "concepts.json").write_text(json.dumps(knowledge(), indent=1) + "\n")
    shutil.copy(Path(__file__).with_name("model_card.md"), folder / "README.md")
    _check_limits(folder)


def knowledge() -> dict[str, object]:
    """What the base knows, for ``concepts.json``."""
    return {
        "concepts": names(TRAINED),
        "classes": {word: names({word: row}) for word, row in TRAINED.items()},
        "held_out": {word: names({word: row}) for word, row in HELD_OUT.items()},
        "styles": STYLES,
        "colours": COLOURS,
        "textures": TEXTURES,
        "sizes": list(SIZES_BY_NAME),
        "positions": POSITIONS,
    }


def _write_half(tensors: dict[str, Tensor], path: Path) -> None:
    half = {name: value.detach().half().contiguous() for name, value in tensors.items()}
    save_file(half, path, metadata={"format": "pt"})


def _name_as_before(path: Path) -> None:
    """Key the text encoder with ``text_model.``, as transformers did before 5.6: every version reads that."""
    tensors: dict[str, Tensor] = load_file(path)
    save_file(
        {"text_model." + key.removeprefix("text_model."): t for key, t in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def _load_as_float32(path: Path) -> None:
    """Let transformers load float32 unless told otherwise, as diffusers does: two precisions do not run together."""
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def _check_limits(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*.safetensors")}
    if sum(sizes.values()) > LIMIT_TOTAL or max(sizes.values()) > LIMIT_FILE:
        raise ValueError(f"the weights are too large: {sum(sizes.values())} bytes in all, {sizes}")

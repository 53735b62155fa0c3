"""Checkpoints on the disk, in both layouts, and adapters of every method for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.adapters.cases import SETTINGS, stir
from tests.models.originals import checkpoint, parts
from tests.tiny import tiny_tokenizer
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import read_spec
from visionpeft.models.manage import manage

WORDS = len(tiny_tokenizer())
KINDS = ("sd1", "sd2", "sdxl")


@cache
def models(kind: str):
    torch.manual_seed(0)
    return parts(kind, full=False, words=WORDS)


def pipeline(kind: str):
    """A pipeline of the small models of the original layout's tests; they are shared and not to be changed."""
    unet, vae, first, second = models(kind)
    scheduler = DDIMScheduler()
    if kind == "sdxl":
        return StableDiffusionXLPipeline(
            vae=vae, unet=unet, text_encoder=first, text_encoder_2=second, tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(pad="!"), scheduler=scheduler, add_watermarker=False,
        )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=first, tokenizer=tiny_tokenizer(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def single(kind: str, path: Path, dtype: torch.dtype = torch.float32, metadata=None) -> Path:
    """The models as one file in the original layout."""
    state = {k: v.detach().to(dtype if v.is_floating_point() else v.dtype).clone().contiguous()
             for k, v in checkpoint(kind, *models(kind)).items()}  # fmt: skip
    safetensors.torch.save_file(state, path, metadata)
    return path


def folder(kind: str, path: Path, dtype: torch.dtype | None = None) -> Path:
    """The models as a diffusers folder."""
    pipeline(kind).save_pretrained(path)
    if dtype is not None:
        for file in path.rglob("*.safetensors"):
            state = {k: v.to(dtype) for k, v in safetensors.torch.load_file(file).items()}
            safetensors.torch.save_file(state, file)
    return path


@cache
def adapter(kind: str, method: str, seed: int = 0, targets: object = ("kohya", "conv")) -> Adapter:
    """A stirred adapter of a method on the UNet and text encoders."""
    base = pipeline(kind)
    values = {"method": method, **SETTINGS.get(method, {"rank": 3, "alpha": 2.0})}
    unet = "all" if method == "full" else targets
    text = "all" if method == "full" else "kohya"
    specs = {"unet": read_spec({**values, "targets": unet}), "text_encoder": read_spec({**values, "targets": text})}
    if kind == "sdxl":
        specs["text_encoder_2"] = specs["text_encoder"]
    manager = manage(base)
    manager.add("a", specs)
    stir(manager, "a", seed, 0.05)
    captured = manager.capture("a")
    manager.remove("a")
    return captured


def merged_by_manager(kind: str, weights) -> dict[str, torch.Tensor]:
    """Every parameter under its canonical name, as `manager.merge` makes it."""
    base = pipeline(kind)
    manager = manage(base)
    for name, (adapter, _) in weights.items():
        manager.attach(name, adapter)
    manager.merge({name: weight for name, (_, weight) in weights.items()})
    found = {}
    for component, module in manager.components.items():
        for key, value in module.state_dict().items():
            plain = key.replace(".base.", ".")
            if component.startswith("text_encoder") and not plain.startswith(("text_model.", "text_projection.")):
                plain = f"text_model.{plain}"
            found[f"{component}.{plain}"] = value.clone()
    manager.unmerge()
    manager.remove(*weights)
    return found

#!/usr/bin/env python3
"""Predicted against measured: peak memory and step time of 24 configurations, real architectures with random weights.

    python -m scripts.bench.plan --work runs/plan [--tiny] [--only sdxl]

Each configuration is planned from its shapes (`visionpeft plan`, with this device calibrated), then trained by the
engine for some steps on one batch that stays on the device: median of the later steps, and the peak that torch
allocated and reserved from before its models came. With --tiny the shapes are small and it runs on a CPU, where only
the steps are measured. The last line tells the largest errors, and how many that were said to fit did not.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import wave
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from visionpeft.compute.devices import best_device
from visionpeft.compute.memory import amount
from visionpeft.config import RunConfig, config_from
from visionpeft.delivery.machine import machine_for
from visionpeft.delivery.plan import make_plan
from visionpeft.models.base import load_base
from visionpeft.run import JOBS
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.training.engine import fit

ROOT = Path(__file__).parents[2]
WARM, STEPS = 6, 14
LORA = {"method": "lora", "rank": 16}


class Case(NamedTuple):
    """One configuration."""

    name: str
    base: str
    train: dict[str, Any]
    pixels: int = 0


def cases() -> Iterator[Case]:
    """The 24 configurations."""
    again, int8 = {"gradient_checkpointing": True}, {"memory": {"base": "int8"}}
    for batch in (1, 4):
        yield Case(f"SD1.5 512 b{batch}", "sd15", {"batch_size": batch}, 512)
        yield Case(f"SD1.5 512 b{batch} recomputing", "sd15", {"batch_size": batch, **again}, 512)
    yield Case("SD1.5 512 b2 adafactor", "sd15", {"batch_size": 2, "optimizer": "adafactor"}, 512)
    yield Case("SD1.5 512 b1 one by one", "sd15", {"batch_size": 1, "record": "off"}, 512)
    yield Case("SD1.5 512 b2 ema, accumulated", "sd15", {"batch_size": 2, "gradient_accumulation": 2, "ema": 0.99}, 512)
    yield Case("SD1.5 512 b1 int8", "sd15", {"batch_size": 1, **int8}, 512)
    yield Case("SDXL 1024 b1", "sdxl", {"batch_size": 1}, 1024)
    yield Case("SDXL 1024 b1 recomputing", "sdxl", {"batch_size": 1, **again}, 1024)
    yield Case("SDXL 1024 b1 recomputing int8", "sdxl", {"batch_size": 1, **again, **int8}, 1024)
    yield Case("SDXL 768 b2 recomputing", "sdxl", {"batch_size": 2, **again}, 768)
    for batch in (8, 32):
        yield Case(f"ViT-B/16 224 b{batch}", "vit", {"batch_size": batch})
    yield Case("ViT-B/16 224 b32 recomputing", "vit", {"batch_size": 32, **again})
    yield Case("ViT-B/16 224 b32 sgd", "vit", {"batch_size": 32, "optimizer": "sgd"})
    yield Case("ViT-B/16 224 b32 one by one", "vit", {"batch_size": 32, "record": "off"})
    for batch in (1, 2):
        yield Case(f"DETR-R50 800 b{batch}", "detr", {"batch_size": batch})
    yield Case("Whisper small b4", "whisper-small", {"batch_size": 4})
    yield Case("Whisper small b16 recomputing", "whisper-small", {"batch_size": 16, **again})
    yield Case("Whisper small b8 int8", "whisper-small", {"batch_size": 8, **int8})
    yield Case("Whisper large-v3 b2", "whisper-large", {"batch_size": 2})
    yield Case("Whisper large-v3 b4 recomputing", "whisper-large", {"batch_size": 4, **again})


def diffusion_folder(folder: Path, *, xl: bool, tiny: bool) -> Path:
    """Write the settings of an SD1.5 or SDXL pipeline, and no weights."""
    diffusers: Any = import_module("diffusers")
    transformers: Any = import_module("transformers")
    source = ROOT / "visionpeft" / "assets" / "emoji-sd" / "tokenizer"
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(str(source))
    wide = 32 if tiny else 768
    small: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    sd15 = {"sample_size": 64, "cross_attention_dim": wide, "attention_head_dim": 8}
    sdxl: dict[str, Any] = {
        "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    if tiny:
        sdxl |= {"block_out_channels": (32, 64), "cross_attention_dim": 64, "layers_per_block": 1, "norm_num_groups": 8,
                 "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": (2, 4),
                 "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 1),
                 "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 32}  # fmt: skip
        sd15 |= {**small, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                 "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
    blocks = 2 if tiny else 4
    with torch.device("meta"):
        diffusers.UNet2DConditionModel(**(sdxl if xl else sd15)).save_config(folder / "unet")
        diffusers.AutoencoderKL(
            block_out_channels=(16, 32) if tiny else (128, 256, 512, 512), layers_per_block=1 if tiny else 2,
            latent_channels=4, norm_num_groups=8 if tiny else 32, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        ).save_config(folder / "vae")  # fmt: skip
    diffusers.DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
              "scheduler": ["diffusers", "DDIMScheduler"]}  # fmt: skip
    encoders = [(768, 12, "CLIPTextModel"), (1280, 32, "CLIPTextModelWithProjection")][: 2 if xl else 1]
    for number, (width, layers, kind) in enumerate(encoders):
        end = "_2" if number else ""
        transformers.CLIPTextConfig(
            vocab_size=max(len(tokenizer), 0 if tiny else 49408), hidden_size=32 if tiny else width,
            intermediate_size=64 if tiny else 4 * width, num_hidden_layers=2 if tiny else layers,
            num_attention_heads=2 if tiny else width // 64, projection_dim=32 if tiny else width,
        ).save_pretrained(folder / f"text_encoder{end}")  # fmt: skip
        tokenizer.save_pretrained(folder / f"tokenizer{end}")
        index |= {f"text_encoder{end}": ["transformers", kind], f"tokenizer{end}": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def transformers_folder(folder: Path, name: str, *, tiny: bool) -> Path:
    """Write the settings of a ViT, a DETR or a Whisper, and a file of weights with nothing in it."""
    from safetensors.torch import save_file

    transformers: Any = import_module("transformers")
    folder.mkdir(parents=True)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    if name == "vit":
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        transformers.ViTConfig(
            image_size=64 if tiny else 224, patch_size=16, **(small if tiny else {})
        ).save_pretrained(folder)
    elif name == "detr":
        sizes: dict[str, Any] = (
            {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "embedding_size": 8} if tiny else {}
        )
        small = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
                 "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
        transformers.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
            backbone_config=transformers.ResNetConfig(out_features=["stage4"], **sizes), **(small if tiny else {}),
        ).save_pretrained(folder)  # fmt: skip
    else:
        width, layers, heads, bins = {"whisper-small": (768, 12, 12, 80), "whisper-large": (1280, 32, 20, 128)}[name]
        whisper_folder(
            folder, transformers.WhisperConfig, (32, 2, 2, 80) if tiny else (width, layers, heads, bins), tiny=tiny
        )
    return folder


def whisper_folder(folder: Path, config: Any, shape: tuple[int, int, int, int], *, tiny: bool) -> None:
    """Write the settings of a Whisper with a vocabulary of bytes."""
    from transformers import WhisperFeatureExtractor

    from tests.tiny_speech import new_whisper, write_whisper

    write_whisper(folder)
    known = new_whisper().config
    width, layers, heads, bins = shape
    config(
        vocab_size=known.vocab_size if tiny else 51866, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, num_mel_bins=bins, max_source_positions=100 if tiny else 1500,
        max_target_positions=448, pad_token_id=known.pad_token_id, bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id, decoder_start_token_id=known.decoder_start_token_id,
        begin_suppress_tokens=None,
    ).save_pretrained(folder)  # fmt: skip
    WhisperFeatureExtractor(feature_size=bins, chunk_length=2 if tiny else 30).save_pretrained(folder)


def made_up_data(work: Path) -> None:
    """Write a picture, a table of classes, boxes, and speech."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "photos").mkdir(exist_ok=True)
    (work / "sounds").mkdir(exist_ok=True)
    Image.effect_noise((1024, 1024), 60).convert("RGB").save(work / "photos" / "1.png")
    for number in range(12):
        Image.effect_noise((320, 320), 60).convert("RGB").save(work / f"{number}.png")
        with wave.open(str(work / "sounds" / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes((6000 * np.sin(np.arange(16_000) * (0.03 + 0.01 * number))).astype(np.int16).tobytes())
    rows = [f"{n}.png,{'ab'[n % 2]},{('train', 'validation', 'test')[n // 6 if n < 10 else 2]}" for n in range(12)]
    (work / "table.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    spoken = [f"{n}.wav,{' '.join(['low'] * 20)},s{n}" for n in range(12)]
    (work / "sounds" / "speech.csv").write_text("path,text,speaker\n" + "\n".join(spoken) + "\n")
    boxes = [{"id": n + 1, "image_id": n, "category_id": 0, "bbox": [20, 20, 90, 90], "area": 8100} for n in range(12)]
    images = [{"id": n, "file_name": f"{n}.png", "width": 320, "height": 320} for n in range(12)]
    table = {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "thing"}]}
    (work / "boxes.json").write_text(json.dumps(table))


def config_of(case: Case, work: Path, *, tiny: bool) -> RunConfig:
    """The settings of a configuration."""
    base = work / "bases" / case.base
    if not base.exists():
        if case.base.startswith("sd"):
            diffusion_folder(base, xl=case.base == "sdxl", tiny=tiny)
        else:
            transformers_folder(base, case.base, tiny=tiny)
    shared = {
        "base": str(base), "adapter": LORA | {"targets": "attention"}, "output": str(work / "runs" / case.name),
        "train": {"steps": STEPS, "checkpoint_every": 0, "log_every": 1000, "evaluate_every": 0, **case.train},
    }  # fmt: skip
    if case.base.startswith("sd"):
        instance = {"images": str(work / "photos"), "prompt": "a photo of sks dog"}
        data = {"instance": instance, "resolution": 64 if tiny else case.pixels, "crop": "center"}
        adapter = LORA | {"targets": {"unet": "attention"}}
        return config_from({**shared, "task": "dreambooth", "adapter": adapter, "data": data, "score": {"every": 0}})
    if case.base == "vit":
        data = {"source": {"format": "table", "path": str(work / "table.csv")}}
        return config_from({**shared, "task": "classify", "scratch": True, "data": data})
    if case.base == "detr":
        data = {"source": {"format": "coco", "folder": str(work), "annotations": "boxes.json"},
                "image_size": 64 if tiny else 800}  # fmt: skip
        return config_from({**shared, "task": "detect", "scratch": True, "data": data})
    data = {"source": {"format": "table", "path": str(work / "sounds" / "speech.csv")}, "split": {"by": "speaker"}}
    return config_from({**shared, "task": "transcribe", "scratch": True, "language": "en", "data": data})


def built(config: RunConfig) -> Any:
    """The task, with random weights."""
    if config.task != "dreambooth":
        from visionpeft.progress import SILENT

        return JOBS[config.task].build(config, SILENT)
    base = load_base(config.base, device="meta")
    for model in (base.unet, base.vae, *base.text_encoders.values()):
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.02)
        for name, buffer in model.named_buffers():
            if "position_ids" in name:
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    settings: Any = config
    return DreamBooth(base, settings.data, config.adapter, seed=config.train.seed)


def measured(config: RunConfig) -> tuple[int, int, float]:
    """Bytes allocated and reserved at most, and the median seconds of a step; 0 bytes on a CPU."""
    cuda = torch.cuda.is_available()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    task, times, kept = built(config), list[float](), list[Any]()
    make: Callable[[Any], Any] = task.batch

    def batch(positions: Any) -> Any:
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if not kept:
            kept.append(make(positions))
        return kept[0]

    task.batch = batch
    fit(task, config.train, config.output)
    micro = config.train.gradient_accumulation
    marks = times[WARM * micro :: micro]
    step = statistics.median(b - a for a, b in pairwise(marks))
    if not cuda:
        return 0, 0, step
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), step


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="", help="part of the configurations' names")
    given = parser.parse_args(arguments)
    made_up_data(given.work)
    machine = machine_for(None, None if best_device() == "cuda" else "cpu")
    print(f"{machine.rates.device}, torch {torch.__version__}")
    print("| work | reserved: plan | measured | error | allocated: plan | measured | step: plan | measured | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst = {"memory": 0.0, "step": 0.0}
    for case in cases():
        if given.only.lower() not in case.name.lower():
            continue
        config = config_of(case, given.work, tiny=given.tiny)
        plan = make_plan(config, type(machine)(machine.rates, None, machine.gpu)).smallest.prediction
        try:
            allocated, reserved, step = measured(config)
        except Exception as error:  # noqa: BLE001 - a row that fails must not cost the others
            print(f"| {case.name} | {type(error).__name__}: {str(error)[:80]} |", flush=True)
            continue
        memory = plan.peak.reserved / reserved - 1 if reserved else 0.0
        late = plan.seconds / step - 1
        worst = {"memory": max(worst["memory"], abs(memory)), "step": max(worst["step"], abs(late))}
        print(
            f"| {case.name} | {amount(plan.peak.reserved)} | {amount(reserved)} | {memory:+.1%} "
            f"| {amount(plan.peak.allocated)} | {amount(allocated)} "
            f"| {plan.seconds * 1000:.1f} ms | {step * 1000:.1f} ms | {late:+.1%} |",
            flush=True,
        )
    print(f"largest errors: memory {worst['memory']:.1%}, step {worst['step']:.1%}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Show at full size, with random weights, that Stable Diffusion 1.5 and XL load, train, export and prove.

    python scripts/bench/full_size.py --tokenizer CLIP_TOKENIZER_FOLDER [--families sd1 sdxl] [--tiny]

Per family: a pipeline of random weights is saved as a diffusers folder and as a single checkpoint in the original
layout; both are loaded and compared; LoRA of rank 16 with kohya's targets on the UNet and every text encoder trains for
20 steps; the adapter is exported to the kohya and the diffusers layout and proved in five programs. One GPU with 40 GB,
or --tiny for a run of the same code on any machine. The last lines are a table; exit status 1 where a check fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionpeft import files, safefile
from visionpeft.adapters.spec import LoraSpec
from visionpeft.files.names import Blocks, original_name
from visionpeft.models.base import Base, load_base
from visionpeft.models.manage import manage
from visionpeft.models.prompts import encode_prompts, time_ids, unet_forward

MODULES = {"sd1": 264, "sdxl": 986}
RANK = 16


# ---------------------------------------------------------------------- the published models' shapes


def unet_config(family: str, *, tiny: bool) -> dict[str, Any]:
    """The UNet's configuration; tiny keeps every kind of block."""
    cross, pooled = text_widths(family, tiny=tiny)
    if family == "sd1":
        return {
            "sample_size": 64, "block_out_channels": (32, 64, 64, 64) if tiny else (320, 640, 1280, 1280),
            "layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": cross, "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        }  # fmt: skip
    added = 8 if tiny else 256
    return {
        "sample_size": 128, "block_out_channels": (32, 64, 64) if tiny else (320, 640, 1280),
        "layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": cross, "use_linear_projection": True,
        "attention_head_dim": (1, 1, 1) if tiny else (5, 10, 20),
        "transformer_layers_per_block": (1, 1, 2) if tiny else (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": added,
        "projection_class_embeddings_input_dim": 6 * added + pooled,
    }  # fmt: skip


def text_configs(family: str, *, tiny: bool) -> dict[str, dict[str, Any]]:
    """The text encoders' configurations by component."""
    shared = {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    large = {
        "hidden_size": 64 if tiny else 768, "intermediate_size": 128 if tiny else 3072,
        "num_hidden_layers": 2 if tiny else 12, "num_attention_heads": 1 if tiny else 12,
        "projection_dim": 64 if tiny else 768, "hidden_act": "quick_gelu",
    }  # fmt: skip
    giant = {
        "hidden_size": 128 if tiny else 1280, "intermediate_size": 256 if tiny else 5120,
        "num_hidden_layers": 2 if tiny else 32, "num_attention_heads": 2 if tiny else 20,
        "projection_dim": 128 if tiny else 1280, "hidden_act": "gelu",
    }  # fmt: skip
    encoders = {"text_encoder": shared | large}
    return encoders if family == "sd1" else encoders | {"text_encoder_2": shared | giant}


def text_widths(family: str, *, tiny: bool) -> tuple[int, int]:
    """(width of the joined text states, width of the pooled one)."""
    widths = [config["hidden_size"] for config in text_configs(family, tiny=tiny).values()]
    return sum(widths), widths[-1]


def vae_config(family: str, *, tiny: bool) -> dict[str, Any]:
    """The autoencoder's configuration."""
    levels = 4
    return {
        "block_out_channels": (32,) * levels if tiny else (128, 256, 512, 512), "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4, "sample_size": 512, "scaling_factor": 0.13025 if family == "sdxl" else 0.18215,
    }  # fmt: skip


def build_unet(family: str, *, tiny: bool) -> nn.Module:
    """A UNet of random weights, on the current default device."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**unet_config(family, tiny=tiny))


def build_text(family: str, *, tiny: bool) -> dict[str, nn.Module]:
    """Text encoders of random weights by component, on the current default device."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    return {name: kinds[name](CLIPTextConfig(**c)) for name, c in text_configs(family, tiny=tiny).items()}


def build_pipeline(family: str, tokenizer: Path, *, tiny: bool, device: str, dtype: torch.dtype) -> Any:
    """The whole pipeline with random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    with torch.device(device):
        models: dict[str, Any] = build_text(family, tiny=tiny) | {"unet": build_unet(family, tiny=tiny)}
        models["vae"] = AutoencoderKL(**vae_config(family, tiny=tiny))
    for model in models.values():
        model.to(device=device, dtype=dtype).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip
    words = {"tokenizer": CLIPTokenizer.from_pretrained(str(tokenizer))}
    if family == "sd1":
        return StableDiffusionPipeline(
            **models, **words, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    words["tokenizer_2"] = CLIPTokenizer.from_pretrained(str(tokenizer), pad_token="!")  # noqa: S106 - a word, no secret
    return StableDiffusionXLPipeline(**models, **words, scheduler=scheduler, add_watermarker=False)


# ---------------------------------------------------------------------- the original layout


def original_state(pipeline: Any, family: str) -> dict[str, Tensor]:
    """A pipeline's tensors under the names of a single checkpoint in the original layout."""
    state: dict[str, Tensor] = {}
    blocks = Blocks(2, frozenset({0}) if family == "sd1" else frozenset())
    for name, tensor in pipeline.unet.state_dict().items():
        path, _, kind = name.rpartition(".")
        state[f"model.diffusion_model.{original_name(path, blocks)}.{kind}"] = tensor
    levels = len(pipeline.vae.config.block_out_channels)
    for name, tensor in pipeline.vae.state_dict().items():
        state |= original_vae(name, tensor, levels)
    first = "cond_stage_model.transformer." if family == "sd1" else "conditioner.embedders.0.transformer."
    for name, tensor in pipeline.text_encoder.state_dict().items():
        state[first + (name if name.startswith("text_model.") else f"text_model.{name}")] = tensor
    if family == "sdxl":
        state |= original_open_clip(pipeline.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    return state


_VAE = (
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"), (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"), (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
)  # fmt: skip


def original_vae(name: str, tensor: Tensor, levels: int) -> dict[str, Tensor]:
    """One tensor of the autoencoder: attention's linear layers become 1×1 convolutions, up blocks count backwards."""
    if ".attentions.0.to_" in name and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    for pattern, new in _VAE:
        name = re.sub(pattern, new, name)
    name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up.{levels - 1 - int(found[1])}.", name)
    return {f"first_stage_model.{name}": tensor}


_OPEN_CLIP = (
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"), (r"^text_model\.encoder\.layers", "transformer.resblocks"),
    (r"layer_norm([12])", r"ln_\1"), (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"), (r"^text_projection\.weight", "text_projection"),
)  # fmt: skip


def original_open_clip(encoder: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names: q, k and v in one tensor, the projection transposed."""
    state: dict[str, Tensor] = {}
    for name, tensor in encoder.items():
        if ".self_attn.q_proj." in name:
            joined = torch.cat([encoder[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            place, kind = name.split(".self_attn.q_proj.")
            state[
                f"{prefix}{place.replace('text_model.encoder.layers', 'transformer.resblocks')}.attn.in_proj_{kind}"
            ] = joined
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            new = name
            for pattern, replacement in _OPEN_CLIP:
                new = re.sub(pattern, replacement, new)
            state[prefix + new] = tensor.mT.contiguous() if new == "text_projection" else tensor
    return state


# ---------------------------------------------------------------------- the run


@dataclass
class Row:
    """One family's figures for the table."""

    family: str
    figures: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def check(self, right: bool, fault: str) -> None:
        """Remember a fault."""
        if not right:
            self.faults.append(fault)


def timed(row: Row, label: str, work: Callable[[], Any]) -> Any:
    """Run one part and print how long it took."""
    start = time.perf_counter()
    result = work()
    print(f"{row.family}: {label} in {time.perf_counter() - start:.1f} s", flush=True)
    return result


def run(family: str, args: argparse.Namespace, device: str) -> Row:
    """Build, save, load twice, train, export and prove one family."""
    row = Row(family)
    dtype = torch.float16 if device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder, single = Path(name) / "pipeline", Path(name) / "single.safetensors"
        save(row, family, args, device, dtype, folder, single)
        load = {"dtype": dtype, "device": device}
        base = timed(row, "loaded from the folder", lambda: load_base(folder, **load))
        side = 8 if args.tiny else base.unet.config.sample_size
        expected, weights = unet_output(base, side), {n: t.cpu() for n, t in base.unet.state_dict().items()}
        del base
        base = timed(row, "loaded from the single file", lambda: load_base(single, tokenizer=args.tokenizer, **load))
        same = all(torch.equal(t.cpu(), weights[n]) for n, t in base.unet.state_dict().items())
        apart = float((unet_output(base, side) - expected).abs().max() / expected.abs().max())
        row.figures["folder = file"] = f"{'weights equal' if same else 'WEIGHTS DIFFER'}, output {apart:.0e}"
        row.check(same and apart < 1e-3, f"the single file is another model: outputs differ by {apart:.1e}")
        adapter = train(row, base, args.steps, side)
        export(row, adapter, base, Path(name))
    return row


def save(
    row: Row, family: str, args: argparse.Namespace, device: str, dtype: torch.dtype, folder: Path, single: Path
) -> None:
    """Write the pipeline as a diffusers folder and as a single checkpoint."""
    build = {"tiny": args.tiny, "device": device, "dtype": dtype}
    pipeline = timed(row, "built", lambda: build_pipeline(family, args.tokenizer, **build))
    timed(row, "saved as a folder", lambda: pipeline.save_pretrained(folder, safe_serialization=True))
    state = original_state(pipeline, family)
    timed(row, "saved as a single file", lambda: safefile.save(single, state, {"format": "pt"}))
    row.figures["single file"] = f"{single.stat().st_size / 1e9:.2f} GB"


@torch.no_grad()
def unet_output(base: Base, side: int) -> Tensor:
    """The UNet's answer to a fixed input through the whole text path, in float32 on the CPU."""
    device = base.unet.device
    noisy = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1)).to(device, base.unet.dtype)
    states = encode_prompts(base, ["a photo of a robot"])
    steps = torch.tensor([500], device=device)
    return unet_forward(base, noisy, steps, states, time_ids(base, 1)).float().cpu()


def train(row: Row, base: Base, steps: int, side: int) -> Any:
    """Train LoRA with kohya's targets on every component for some steps; return the adapter."""
    manager = manage(base)
    components = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in manager.components]
    spec = LoraSpec(rank=RANK, alpha=RANK / 2, targets=dict.fromkeys(components, "kohya"))
    row.figures["modules"] = " + ".join(str(n) for n in manager.add("subject", spec).modules.values())
    parameters = [p for group in manager.trainable("subject").values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    cuda = base.unet.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    losses = list(train_steps(base, optimizer, steps, side))
    row.check(all(loss == loss for _, loss in losses), "the loss is not a number")
    settled = [seconds for seconds, _ in losses[min(3, steps - 1) :]]
    row.figures["step"] = f"{1000 * sum(settled) / len(settled):.0f} ms"
    row.figures["peak memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else "-"
    return manager.capture("subject")


def train_steps(base: Base, optimizer: torch.optim.Optimizer, steps: int, side: int) -> Iterator[tuple[float, float]]:
    """Yield (seconds, loss) of each step: batch 1, random latents, one prompt."""
    device = base.unet.device
    alphas = base.pipeline.scheduler.alphas_cumprod.to(device)
    for step in range(steps):
        start = time.perf_counter()
        draw = torch.Generator(device).manual_seed(step)
        latents, noise = torch.randn(2, 1, 4, side, side, device=device, generator=draw)
        at = torch.randint(1000, (1,), device=device, generator=draw)
        noisy = alphas[at].sqrt() * latents + (1 - alphas[at]).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            states = encode_prompts(base, ["a photo of sks robot"])
            predicted = unet_forward(base, noisy, at, states, time_ids(base, 1))
            loss = nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())  # waits for the device
        yield time.perf_counter() - start, value


def export(row: Row, adapter: Any, base: Base, folder: Path) -> None:
    """Write both layouts, read them back by every program's rules, and count the modules."""
    wanted = MODULES[row.family]
    for layout in ("kohya", "diffusers"):
        path = folder / f"subject.{layout}.safetensors"
        timed(row, f"exported to {layout}", lambda p=path, f=layout: files.export(adapter, p, f, base=base))
        proof = timed(row, "proved", lambda p=path: files.prove(p, adapter, base=base))
        print(proof, flush=True)
        row.check(proof.ok, f"the proof of the {layout} file fails")
        for program in proof.meant_for:
            one = proof.programs[program]
            row.check(one.applied == one.expected, f"{program} applies {one.applied} of {one.expected}")
    row.figures["proved"] = f"{proof.programs['diffusers'].applied} of {wanted}"
    row.figures["max |ΔW error|"] = f"{proof.programs['diffusers'].max_abs_error:.1e}"


def main() -> int:
    """Run all families and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with CLIP's vocab.json and merges.txt")
    parser.add_argument("--families", nargs="+", default=["sd1", "sdxl"], choices=["sd1", "sdxl"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, help="folder for the files (SDXL: 14 GB); default: the system's")
    parser.add_argument("--tiny", action="store_true", help="small models of the same make, for any machine")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [run(family, args, device) for family in args.families]
    for row in rows:
        if not args.tiny:
            count = sum(int(n) for n in row.figures["modules"].split(" + "))
            row.check(count == MODULES[row.family], f"{count} modules, kohya trains {MODULES[row.family]}")
    names = list(rows[0].figures)
    print("\n| base | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for row in rows:
        print(f"| {row.family} | " + " | ".join(row.figures[name] for name in names) + " |")
    faults = [f"{row.family}: {fault}" for row in rows for fault in row.faults]
    print("\n".join(f"FAILED: {fault}" for fault in faults) or "all checks passed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

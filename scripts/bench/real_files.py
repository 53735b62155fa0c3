"""Two real LoRA files, from what they are to a picture: ``python -m scripts.bench.real_files FOLDER``.

They are in the layout of cloneofsimo's program, for Stable Diffusion 1.5. Each is inspected, converted to kohya's
layout, proved, blended and painted with, by a UNet and a text encoder of the published shapes with random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from scripts.bench.bars import Bar, Part
from visionpeft import files
from visionpeft.adapters import algebra
from visionpeft.cli import run
from visionpeft.inference.generate import Request, generate
from visionpeft.models.base import Base, load_base
from visionpeft.models.family import family_of
from visionpeft.models.manage import manage

NAMES = ("analog_svd_rank4", "lora_disney")
WEIGHTS = (3.0, 0.5)  # much, so that a network of random weights shows it
MODULES = 192


def real_files(folder: Path) -> Part:
    """Take both files all the way."""
    part = Part("The two real files")
    with tempfile.TemporaryDirectory() as work:
        converted = [convert(part, folder / f"{name}.safetensors", Path(work)) for name in NAMES]
        blended = Path(work) / "both.safetensors"
        # one as its own program wrote it, one converted: blend takes both
        parts = [f"{folder / NAMES[0]}.safetensors={WEIGHTS[0]}", f"{converted[1]}={WEIGHTS[1]}"]
        told("blend", *parts, "--method", "cat", "--output", blended)
        part.bars.append(of_blend(folder, blended))
        part.bars.append(of_pictures(*converted, blended))
    return part


def told(*words: object) -> dict[str, Any]:
    """The answer of a command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = run([*map(str, words), "--json"])
    if status:
        raise SystemExit(f"{words[0]} failed: {said.getvalue()[-2000:]}")
    return json.loads(said.getvalue())


def convert(part: Part, source: Path, work: Path) -> Path:
    """Inspect a file, write it in kohya's layout, and prove it in every program."""
    facts, target = told("inspect", source), work / source.name
    proofs = told("convert", source, "--format", "kohya", "--dtype", "float32", "--output", target)["proof"]["programs"]
    whole = all(p["applied"] == p["expected"] == MODULES and not p["ignored_keys"] for p in proofs.values())
    worst = max(p["max_rel_error"] for p in proofs.values())
    known = (facts["format"], facts["family"]) == ("cloneofsimo", "sd1")
    what = f"{source.stem}: {facts['format']}, {facts['family']}; converted to kohya and proved in {', '.join(proofs)}"
    said = f"{'all' if whole else 'NOT ALL'} {MODULES} modules apply, largest relative error {worst:.0e}"
    part.bars.append(Bar(what, said, "all, exactly", known and whole and worst == 0))
    return target


def of_blend(folder: Path, blended: Path) -> Bar:
    """The blend against the weighted sum in float64."""
    one, other = (algebra.deltas(files.read(folder / f"{name}.safetensors")) for name in NAMES)
    worst = 0.0
    for place, found in algebra.deltas(files.read(blended)).items():
        exact = WEIGHTS[0] * one[place].double() + WEIGHTS[1] * other[place].double()
        worst = max(worst, float((found - exact).norm() / exact.norm()))
    return Bar(
        "both blended, against the sum in float64: largest relative error", f"{worst:.1e}", "1e-5", worst <= 1e-5
    )


def of_pictures(analog: Path, disney: Path, blended: Path) -> Bar:
    """Pictures with both live and with their blend are the same, and are neither the base's nor one file's alone."""
    base = base_of_published_shape()
    manager = manage(base)
    for name, path in zip(("analog", "disney", "both"), (analog, disney, blended), strict=True):
        manager.attach(name, files.read(path))
    live = dict(zip(("analog", "disney"), WEIGHTS, strict=True))
    bare, together, blend, alone = pictures(base, manager, {}, live, {"both": 1.0}, {"analog": WEIGHTS[0]})
    apart = np.abs(together - blend).max()
    moved, more = np.abs(together - bare).mean(), np.abs(together - alone).mean()
    said = (
        f"at most {apart:.0f} of 255 apart; {moved:.1f} from the base's in the mean, {more:.1f} from one file's alone"
    )
    met = bool(np.isfinite(bare).all() and bare.std() > 1 and apart <= 1 and moved > 1 and more > 0.1)
    return Bar("painted over SD 1.5's shape: both live, and their blend", said, "at most 1 apart, and moved", met)


def pictures(base: Base, manager: Any, *weights: dict[str, float]) -> list[np.ndarray]:
    """A picture for each choice of weights."""
    requests = [Request("a photo of a robot", steps=2, guidance=1.0, weights=weight) for weight in weights]
    return [np.asarray(picture, dtype=float) for picture in generate(base, requests, manager=manager)]


def base_of_published_shape() -> Base:
    """SD 1.5's UNet and text encoder, all 860 and 85 million weights, beside the embedded autoencoder and words."""
    pipeline = load_base("visionpeft/emoji-sd").pipeline
    small = pipeline.text_encoder.config
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=16, cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=small.vocab_size, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, bos_token_id=0, eos_token_id=2, pad_token_id=1,
            )
        )  # fmt: skip
    for name, buffer in list(text.named_buffers()):
        owner, _, last = name.rpartition(".")
        text.get_submodule(owner).register_buffer(last, torch.arange(buffer.shape[-1])[None], persistent=False)
    pipeline.register_modules(unet=with_few_values(unet), text_encoder=with_few_values(text))
    return Base(pipeline, family_of(pipeline), "published/shape", "0" * 64)


def with_few_values(model: nn.Module) -> nn.Module:
    """A model built on no device, whose parameters are all views of the same random values: little memory."""
    pool = 0.02 * torch.randn(max(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(1))
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        plain = {"bias": torch.zeros, "weight": torch.ones}[last](parameter.shape) if parameter.ndim == 1 else None
        values = pool[: parameter.numel()].view(parameter.shape) if plain is None else plain
        model.get_submodule(owner).register_parameter(last, nn.Parameter(values, requires_grad=False))
    return model.eval()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help=f"holds {' and '.join(NAMES)} (.safetensors)")
    part = real_files(parser.parse_args().folder)
    print(*part.bars, sep="\n")
    return int(not all(bar.met for bar in part.bars))


if __name__ == "__main__":
    raise SystemExit(main())

"""Random exports read again: ``python -m scripts.bench.round_trips --cases 1000``.

Stated are the largest relative ΔW error at float32, and at float16 beside that of the same adapter with its factors
rounded to float16, case by case: an export must be no worse than that.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from scripts.bench.bars import Bar, Part
from visionpeft import files
from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter, AdapterMetadata
from visionpeft.adapters.spec import read_spec

LAYERS = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (16, 12),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": (24, 16),
    "unet.up_blocks.1.resnets.0.conv1": (8, 12, 3, 3),
    "text_encoder.text_model.encoder.layers.3.mlp.fc1": (20, 10),
}
VISION = {
    "model.vit.layers.0.attention.q_proj": (16, 12),
    "model.vit.layers.1.mlp.fc2": (12, 24),
}
FAMILIES = ("sd1", "sd2", "sdxl", "vit")
FORMATS = {
    "kohya": ("lora", "rslora", "dora", "loha", "lokr"),
    "lycoris": ("lora", "rslora", "dora", "loha", "lokr", "full", "oft", "ia3"),
    "diffusers": ("lora", "rslora", "dora"),
    "native": ("lora", "rslora", "dora", "loha", "lokr", "full", "oft", "ia3"),
    "peft": ("lora", "rslora", "dora", "loha", "oft", "ia3"),  # of LoKr it has one factorisation of its own
}
ANY = ("native", "peft")
"""The formats that hold any family."""
SINGLE, ENDS = ".safetensors", {"peft": ""}


def parts_of(method: str, shape: tuple[int, ...], rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random parameters of a method over a weight of this shape."""
    out, ins, kernel = shape[0], shape[1], shape[2:]
    flat, ones = ins * (kernel[0] * kernel[1] if kernel else 1), (1,) * len(kernel)

    def rand(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    if method == "full":
        return {"weight.diff": rand(*shape), "bias.diff": rand(out)}
    if method == "oft":
        return {"oft_R.weight": 0.2 * rand(flat // 2, 1)}
    if method == "ia3":
        return {"ia3_l": 1 + 0.2 * rand(*((1, out, 1, 1) if kernel else (out, 1)))}
    if method == "loha":
        return {f"hada_w{n}_{s}": rand(out, rank) if s == "a" else rand(rank, flat) for n in "12" for s in "ab"}
    if method == "lokr":
        return {"lokr_w1": rand(2, 2), "lokr_w2_a": rand(out // 2, rank), "lokr_w2_b": rand(rank, flat // 2)}
    parts = {"lora_A.weight": rand(rank, ins, *kernel), "lora_B.weight": rand(out, rank, *ones)}
    if method == "dora":
        parts["lora_magnitude_vector"] = rand(*((1, out, 1, 1) if kernel else (out,))).abs() + 0.5
    return parts


def random_adapter(method: str, family: str, draw: random.Random) -> tuple[Adapter, dict[str, Tensor]]:
    """An adapter with ranks and alphas of single modules, and base weights."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    layers = VISION if family == "vit" else LAYERS
    ranks = {place: draw.randrange(1, 7) for place in layers}
    specs = {}
    for component in sorted({place.partition(".")[0] for place in layers}):
        paths = {place.partition(".")[2]: place for place in layers if place.startswith(component + ".")}
        values: dict[str, object] = {"method": method, "targets": tuple(paths)}
        if method == "oft":
            values |= {"block_size": 2, "neumann_terms": 0}
        elif method not in ("full", "ia3"):
            values |= {"rank": 4, "alpha": draw.uniform(0.5, 9)}
            values["rank_pattern"] = {path: ranks[place] for path, place in paths.items()}
            values["alpha_pattern"] = {path: draw.uniform(0.5, 9) for path in paths if draw.random() < 0.5}
        if method in ("loha", "lokr"):
            values["kernels"] = {path: (3, 3) for path, place in paths.items() if len(layers[place]) == 4}
        specs[component] = read_spec(values)
    made = {place: parts_of(method, shape, ranks[place], generator) for place, shape in layers.items()}
    tensors = {f"{place}.{name}": tensor for place, parts in made.items() for name, tensor in parts.items()}
    base = {place: torch.randn(*shape, generator=generator) for place, shape in layers.items()}
    return Adapter(specs, tensors, {}, AdapterMetadata(family=family)), base


def worst_error(value: Adapter, found: Adapter, base: dict[str, Tensor]) -> float:
    """The largest ‖ΔW error‖ / ‖ΔW‖ of a module."""
    one, other = algebra.deltas(value, base), algebra.deltas(found, base)
    if one.keys() != other.keys():
        return float("inf")
    return max(float((other[place] - one[place]).norm() / one[place].norm()) for place in one)


def rounded(value: Adapter) -> Adapter:
    """The adapter with every factor rounded to float16; magnitudes and (IA)³'s vectors are no factors, and stay."""
    tensors = {
        name: tensor if name.endswith(("magnitude_vector", "ia3_l")) else tensor.half().float()
        for name, tensor in value.tensors.items()
    }
    return replace(value, tensors=tensors)


def rounded_error(value: Adapter, base: dict[str, Tensor], method: str, layout: str) -> float:
    """The error of rounding what a file holds: factors, or the whole difference of what is written as one."""
    if layout != "lycoris" or method not in ("oft", "ia3"):
        return worst_error(value, rounded(value), base)
    whole = algebra.deltas(value, base).values()
    return max(float((delta.half().float() - delta).norm() / delta.norm()) for delta in whole)


def round_trips(cases: int) -> Part:
    """Random adapters written and read, in float32 and in float16."""
    worst: dict[tuple[str, str], float] = {}
    ratio = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(cases):
            layout, method, value, base = random_case(random.Random(number))
            for dtype in ("float32", "float16"):
                written = files.export(
                    value, Path(folder) / f"{number}{dtype}{ENDS.get(layout, SINGLE)}", layout, base=base, dtype=dtype
                )
                error = worst_error(value, files.read(written, base), base)
                worst[layout, dtype] = max(worst.get((layout, dtype), 0.0), error)
                shutil.rmtree(written) if written.is_dir() else written.unlink()
            ratio = max(ratio, error / max(rounded_error(value, base, method, layout), 1e-12))
    whole = max(error for (_, dtype), error in worst.items() if dtype == "float32")
    what = f"{cases} random exports read again, over formats, methods and families"
    bars = [
        Bar(f"{what}: largest relative error of a ΔW, float32", f"{whole:.1e}", "1e-6", whole < 1e-6),
        Bar(
            "the same in float16, over that of rounding the factors",
            f"at most {ratio:.4f} times",
            "1 (to 1e-3: the measurement is in float32)",
            ratio <= 1.001,
        ),
    ]
    lines = ["| format | float32 | float16 |", "| --- | --- | --- |"]
    lines += [
        f"| {layout} | {worst[layout, 'float32']:.1e} | {worst[layout, 'float16']:.1e} |"
        for layout in FORMATS
        if (layout, "float32") in worst
    ]
    return Part("Round trips", bars, lines)


def random_case(draw: random.Random) -> tuple[str, str, Adapter, dict[str, Tensor]]:
    """A format, a method, and an adapter of it with base weights."""
    layout = draw.choice(list(FORMATS))
    method, family = draw.choice(FORMATS[layout]), draw.choice(FAMILIES if layout in ANY else FAMILIES[:3])
    return layout, method, *random_adapter(method, family, draw)


def main() -> int:
    """Run the cases; print the worst of each format and type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    part = round_trips(parser.parse_args().cases)
    print(*part.bars, *part.lines, sep="\n")
    return int(not all(bar.met for bar in part.bars))


if __name__ == "__main__":
    raise SystemExit(main())

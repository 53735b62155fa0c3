"""Random exports read again: ``python scripts/bench/round_trips.py --cases 1000``.

Stated are the largest relative ΔW error at float32, and at float16 beside that of the same adapter with its factors
rounded to float16, case by case: an export must be no worse than that.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

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
FORMATS = {
    "kohya": ("lora", "rslora", "dora", "loha", "lokr"),
    "lycoris": ("lora", "rslora", "dora", "loha", "lokr", "full", "oft", "ia3"),
    "diffusers": ("lora", "rslora", "dora"),
    "native": ("lora", "rslora", "dora", "loha", "lokr", "full", "oft", "ia3"),
}


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
    ranks = {place: draw.randrange(1, 7) for place in LAYERS}
    specs = {}
    for component in ("unet", "text_encoder"):
        paths = {place.partition(".")[2]: place for place in LAYERS if place.startswith(component + ".")}
        values: dict[str, object] = {"method": method, "targets": tuple(paths)}
        if method == "oft":
            values |= {"block_size": 2, "neumann_terms": 0}
        elif method not in ("full", "ia3"):
            values |= {"rank": 4, "alpha": draw.uniform(0.5, 9)}
            values["rank_pattern"] = {path: ranks[place] for path, place in paths.items()}
            values["alpha_pattern"] = {path: draw.uniform(0.5, 9) for path in paths if draw.random() < 0.5}
        if method in ("loha", "lokr"):
            values["kernels"] = {path: (3, 3) for path, place in paths.items() if len(LAYERS[place]) == 4}
        specs[component] = read_spec(values)
    made = {place: parts_of(method, shape, ranks[place], generator) for place, shape in LAYERS.items()}
    tensors = {f"{place}.{name}": tensor for place, parts in made.items() for name, tensor in parts.items()}
    base = {place: torch.randn(*shape, generator=generator) for place, shape in LAYERS.items()}
    return Adapter(specs, tensors, {}, AdapterMetadata(family=family)), base


def worst_error(value: Adapter, found: Adapter, base: dict[str, Tensor]) -> float:
    """The largest ‖ΔW error‖ / ‖ΔW‖ of a module."""
    one, other = algebra.deltas(value, base), algebra.deltas(found, base)
    if one.keys() != other.keys():
        return float("inf")
    return max(float((other[place] - one[place]).norm() / one[place].norm()) for place in one)


def rounded(value: Adapter) -> Adapter:
    """The adapter with every factor rounded to float16; magnitudes are not factors, and stay."""
    tensors = {
        name: tensor if name.endswith("magnitude_vector") else tensor.half().float()
        for name, tensor in value.tensors.items()
    }
    return replace(value, tensors=tensors)


def rounded_error(value: Adapter, base: dict[str, Tensor], method: str) -> float:
    """The error of rounding what a file holds: factors, or the whole difference of what is written as one."""
    if method not in ("oft", "ia3"):
        return worst_error(value, rounded(value), base)
    whole = algebra.deltas(value, base).values()
    return max(float((delta.half().float() - delta).norm() / delta.norm()) for delta in whole)


def main() -> int:
    """Run the cases; print the worst of each format and type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    given = parser.parse_args()
    worst: dict[tuple[str, str], float] = {}
    ratio = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.cases):
            draw = random.Random(number)
            layout = draw.choice(list(FORMATS))
            method, family = draw.choice(FORMATS[layout]), draw.choice(("sd1", "sd2", "sdxl"))
            value, base = random_adapter(method, family, draw)
            for dtype in ("float32", "float16"):
                path = Path(folder) / "a.safetensors"
                files.export(value, path, layout, base=base, dtype=dtype, overwrite=True)
                error = worst_error(value, files.read(path, base), base)
                worst[layout, dtype] = max(worst.get((layout, dtype), 0.0), error)
            ratio = max(ratio, error / rounded_error(value, base, method))
    print(f"{given.cases} cases")
    for (layout, dtype), error in sorted(worst.items()):
        print(f"{layout} {dtype}: largest relative error {error:.1e}")
    print(f"float16: at most {ratio:.4f} of the error of rounding the factors")
    at_full = max(error for (_, dtype), error in worst.items() if dtype == "float32")
    return int(at_full >= 1e-6 or ratio > 1.001)  # the measurement itself is in float32


if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python3
"""Time and memory of attention at 512, 1024 and 2048 pixels, for each kernel that works here.

    python -m scripts.bench.attention [--device cpu --px 64 128] [--dtype bfloat16] [--batch 1]

The shapes are those of the UNets' first attention: SD 1.5 has it at an eighth of the picture's side (8 heads of 40),
SDXL at a sixteenth (10 heads of 64); each attends to itself and to 77 words. A pass is forward and backward, recorded
as a CUDA graph where that can be; "kept" is what the forward pass keeps for the backward pass, inputs included, "peak"
what PyTorch allocated at most beyond the inputs, which only a GPU tells. The line below the table says how both grow
with the tokens: 1.00 is linear, 2.00 is with their square. A kernel that cannot do a shape, or for want of memory, has
no figures.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from visionpeft.compute.attending import OWN, Shape, attending, milliseconds, working
from visionpeft.compute.memory import amount

WORDS = 77


@dataclass(frozen=True)
class Model:
    """A UNet's first attention: pixels along a token's side, heads and their width."""

    name: str
    pixels: int
    heads: int
    width: int


MODELS = (Model("SD 1.5", 8, 8, 40), Model("SDXL", 16, 10, 64))


@dataclass(frozen=True)
class Figures:
    """Of one kernel and shape: milliseconds of a pass, bytes that are kept for the backward pass, bytes at the peak."""

    spent: float
    kept: int
    peak: int | None


def kept_bytes(shape: Shape, device: torch.device) -> int:
    """Return the bytes of all tensors that the forward pass keeps."""
    (query, key, value), more = shape.tensors(device)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = F.scaled_dot_product_attention(query, key, value, **more)
    del out  # until here, so that no memory is counted twice
    return sum(kept.values())


def peak_bytes(shape: Shape, device: torch.device) -> int | None:
    """Return what a pass allocates at most beyond its inputs; None on a CPU."""
    if device.type != "cuda":
        return None
    (query, key, value), more = shape.tensors(device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = F.scaled_dot_product_attention(query, key, value, **more)
    torch.autograd.grad(out, (query, key, value), out.detach())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measured(shape: Shape, device: torch.device, context: Callable[[], AbstractContextManager[Any]]) -> Figures | None:
    """Return a kernel's figures; None: it cannot do this shape, or not in this memory."""
    spent = milliseconds(shape, device, context)
    if spent is None:
        return None
    with context():
        return Figures(spent, kept_bytes(shape, device), peak_bytes(shape, device))


def kernels(device: torch.device) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Return what is measured: torch's own choice, the formula written out, and each kernel that works, alone."""
    found: dict[str, Callable[[], AbstractContextManager[Any]]] = {"torch's own choice": partial(attending, OWN)}
    for name, backend in working(device).items():
        if backend.works:
            found[name] = partial(attending, name)
    return found | {"the formula": partial(sdpa_kernel, SDPBackend.MATH)}


def growth(first: float, last: float, tokens: float) -> float:
    """Return the power of the tokens that a figure grew with."""
    return math.log(last / first) / math.log(tokens)


def table(options: argparse.Namespace) -> list[str]:
    """Return the lines of the table, and under it how memory grows."""
    device = torch.device(options.device)
    lines = ["| model | px | tokens | attends to | kernel | pass, ms | kept | peak |", "|---" * 8 + "|"]
    ends: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for model in MODELS:
        for px in options.px:
            tokens = (px // model.pixels) ** 2
            for what, keys in (("itself", tokens), ("words", WORDS)):
                shape = Shape(options.batch, model.heads, tokens, keys, model.width, options.dtype)
                for name, context in kernels(device).items():
                    found = measured(shape, device, context)
                    where = f"| {model.name} | {px} | {tokens} | {what} | {name} "
                    lines.append(where + ("| - | - | - |" if found is None else _cells(found)))
                    if found is not None and what == "itself":
                        size = found.kept if found.peak is None else found.peak
                        ends.setdefault((model.name, name), []).append((tokens, size))
    return [*lines, "", *_growths(ends)]


def _cells(found: Figures) -> str:
    peak = "" if found.peak is None else amount(found.peak)
    return f"| {found.spent:.3f} | {amount(found.kept)} | {peak} |"


def _growths(ends: dict[tuple[str, str], list[tuple[int, int]]]) -> list[str]:
    lines: list[str] = []
    for (model, name), sizes in ends.items():
        (few, small), (many, large) = sizes[0], sizes[-1]
        if many > few:
            power = growth(small, large, many / few)
            lines.append(f"- {model}, {name}: memory grows with tokens^{power:.2f} from {few} to {many} tokens.")
    return lines


def main() -> None:
    """Measure every shape with every kernel and print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.attention", description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--px", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    product = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{product}, torch {torch.__version__}, {options.dtype}, batch {options.batch}\n")
    print(*table(options), sep="\n")


if __name__ == "__main__":
    main()

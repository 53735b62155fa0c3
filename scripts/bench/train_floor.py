#!/usr/bin/env python3
"""What a training step of a UNet has to compute at least: operations and bytes, counted on shapes alone.

    python -m scripts.bench.train_floor [--tflops 790] [--terabytes 4.8]

A LoRA step multiplies with every frozen weight twice: in the forward pass, and for the gradient of its input. (The
gradients of the weights themselves, the third part of full training, are not needed.) What the adapters multiply comes
on top, about rank / width of it. torch counts the operations of products, convolutions and attention while the
UNet runs on the meta device, where tensors have no values; kernels are all operations that are no mere views.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench.full_size import build_unet, text_widths

STEPS = {"SD1.5 512 px, batch 1": ("sd1", 64, 1), "SD1.5 512 px, batch 4": ("sd1", 64, 4),
         "SDXL 1024 px, batch 1": ("sdxl", 128, 1)}  # fmt: skip
"""Name -> family, side of the latents, samples."""


@dataclass(frozen=True)
class Floor:
    """What one step needs.

    Attributes:
        operations: multiplications and additions of both passes.
        kernels: how many operations eager PyTorch starts for them, each for itself.
        weights: bytes of the frozen weights in bfloat16.
        traffic: bytes that those kernels read and write.
    """

    operations: int
    kernels: int
    weights: int
    traffic: int

    def milliseconds(self, tflops: float, terabytes: float) -> tuple[float, float]:
        """Return the time of the operations, and that of reading the weights twice."""
        return self.operations / tflops / 1e9, 2 * self.weights / terabytes / 1e9


class Kernels(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of what they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and count it."""
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__ and "detach" not in func.__name__:
            self.count += 1
            self.bytes += sum(t.nbytes for t in _tensors((*args, out)))
        return out


def _tensors(values: Any) -> Sequence[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def floor_of(family: str, side: int, batch: int, *, tiny: bool = False) -> Floor:
    """Count a forward and a backward pass on the meta device."""
    with torch.device("meta"):
        unet: Any = build_unet(family, tiny=tiny).to(torch.bfloat16).requires_grad_(False)
        width, pooled = text_widths(family, tiny=tiny)
        noisy = torch.empty(batch, 4, side, side, dtype=torch.bfloat16, requires_grad=True)
        states = torch.empty(batch, 77, width, dtype=torch.bfloat16)
        added = None
        if family == "sdxl":
            texts = torch.empty(batch, pooled, dtype=torch.bfloat16)
            added = {"text_embeds": texts, "time_ids": torch.empty(batch, 6)}
        times = torch.empty(batch, dtype=torch.long)
    kernels, counter = Kernels(), FlopCounterMode(display=False)
    with counter, kernels:
        said = unet(noisy, times, encoder_hidden_states=states, added_cond_kwargs=added).sample
        said.backward(torch.empty_like(said))
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    return Floor(counter.get_total_flops(), kernels.count, weights, kernels.bytes)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.train_floor", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tflops", type=float, default=790.0, help="what a large bfloat16 product reaches, TFLOP/s")
    parser.add_argument("--terabytes", type=float, default=4.8, help="bandwidth of the GPU's memory, TB/s")
    options = parser.parse_args()
    print("| step | TFLOP | at the rate, ms | weights, GB | read twice, ms | kernels | their bytes, GB |")
    print("|---|---|---|---|---|---|---|")
    for name, (family, side, batch) in STEPS.items():
        floor = floor_of(family, side, batch)
        computing, reading = floor.milliseconds(options.tflops, options.terabytes)
        print(
            f"| {name} | {floor.operations / 1e12:.2f} | {computing:.1f} | {floor.weights / 1e9:.2f} | {reading:.1f}"
            f" | {floor.kernels} | {floor.traffic / 1e9:.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

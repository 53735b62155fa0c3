"""Two rank-32 adapters of SDXL's size, and their blend: ``python -m scripts.bench.sdxl_blend``.

In a process of its own, so that its memory is that of a blend: no peft, no model. One thread, as layers are small.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from scripts.bench.bars import peak_bytes
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.spec import LoraSpec


def sdxl_shapes() -> dict[str, tuple[int, int]]:
    """[out, in] of the 722 layers of SDXL's UNet that kohya's scripts train, and of 72 + 192 of its text encoders."""
    shapes: dict[str, tuple[int, int]] = {}
    blocks = [("down_blocks.1", 640, 2, 2), ("down_blocks.2", 1280, 2, 10), ("mid_block", 1280, 1, 10)]
    blocks += [("up_blocks.0", 1280, 3, 10), ("up_blocks.1", 640, 3, 2)]
    for block, width, attentions, depth in blocks:
        for i in range(attentions):
            root = f"unet.{block}.attentions.{i}"
            shapes |= {f"{root}.proj_in": (width, width), f"{root}.proj_out": (width, width)}
            for j in range(depth):
                shapes |= transformer(f"{root}.transformer_blocks.{j}", width)
    for name, width, depth in (("text_encoder", 768, 12), ("text_encoder_2", 1280, 32)):
        for i in range(depth):
            root = f"{name}.text_model.encoder.layers.{i}"
            shapes |= {f"{root}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            shapes |= {f"{root}.mlp.fc1": (4 * width, width), f"{root}.mlp.fc2": (width, 4 * width)}
    return shapes


def transformer(root: str, width: int) -> dict[str, tuple[int, int]]:
    """The layers of one transformer block of the UNet."""
    found = {f"{root}.attn1.{part}": (width, width) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    found |= {f"{root}.attn2.{part}": (width, width) for part in ("to_q", "to_out.0")}
    found |= {f"{root}.attn2.{part}": (width, 2048) for part in ("to_k", "to_v")}
    return found | {f"{root}.ff.net.0.proj": (8 * width, width), f"{root}.ff.net.2": (width, 4 * width)}


def sdxl_adapter(seed: int) -> Adapter:
    """A random adapter of rank 32."""
    generator = torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for place, (out, inn) in sdxl_shapes().items():
        tensors[f"{place}.lora_A.weight"] = torch.randn(32, inn, generator=generator) / inn**0.5
        tensors[f"{place}.lora_B.weight"] = 0.02 * torch.randn(out, 32, generator=generator)
    parts = {place.partition(".")[0] for place in sdxl_shapes()}
    return Adapter({part: LoraSpec(targets="kohya", rank=32) for part in sorted(parts)}, tensors)


def main() -> None:
    """Blend the two; print seconds by the clock, seconds of processors, and the peak of memory in MB."""
    torch.set_num_threads(1)  # layers are small: two threads wait for each other
    pair = {"a": (sdxl_adapter(1), 0.8), "b": (sdxl_adapter(2), 0.5)}
    clock, worked = time.perf_counter(), time.process_time()
    blend(pair, "svd", 32)
    seconds = time.perf_counter() - clock, time.process_time() - worked
    print(*seconds, peak_bytes() / 1e6)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
# ruff: noqa: E501 - its tables are wide
"""Measure blends: against dense float64 arithmetic and against peft, and their time and memory at SDXL's size.

    python scripts/bench/blends.py --cases 200 --layers 6 --output scripts/bench/blends.md

First part: random cases of linear layers and convolutions; for each blend the largest and the median relative error
``‖got - wanted‖ / ‖wanted‖``, where wanted is the definition on full matrices in float64, cut to the same rank. peft's
`add_weighted_adapter` is measured against the same definition, but for its
random methods, whose masks it does not tell. Its "ties" elects signs before weighting: with unequal weights another rule.
Second part: two rank-32 adapters of the shapes of SDXL's 722 UNet layers and 264 layers of text encoders, blended with
"svd" in a process of its own; then peft's "svd" on a sample of the layers, all in one run on one machine.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor, nn

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.blend_table import BLENDS, Draws
from visionpeft.adapters.spec import LoraSpec

PLACE = "model.x"
Dense = list[Tensor]
THEIRS = {
    "cat": ("cat",), "linear": ("linear",), "svd": ("svd",), "magnitude_prune": ("magnitude_prune", "magnitude_prune_svd"),
    "ties": ("ties", "ties_svd"),
}  # fmt: skip
"""Blend -> the combination types by which peft offers it."""


def top(change: Tensor, share: float) -> Tensor:
    """Keep the largest elements."""
    order = change.abs().flatten().argsort(descending=True)[: round(share * change.numel())]
    mask = torch.zeros(change.numel(), dtype=change.dtype).index_fill(0, order, 1)
    return change * mask.reshape(change.shape)


def elect(changes: Dense) -> Tensor:
    """TIES's election and mean."""
    stack = torch.stack(changes)
    agrees = torch.sign(stack) * torch.sign(stack.sum(0)) > 0
    return (stack * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def della(dense: Dense, weights: Sequence[float], uniform: Dense) -> Tensor:
    """DELLA at density 0.5 and epsilon 0.2."""
    kept = []
    for change, weight, draw in zip(dense, weights, uniform, strict=True):
        rank = change.abs().argsort(dim=1, descending=True).argsort(dim=1)
        drop = 1 - 0.5 - 0.1 + 0.2 / change.shape[1] * rank
        kept.append(weight * change / (1 - drop) * (draw < 1 - drop))
    return elect(kept)


def slerp(dense: Dense, weights: Sequence[float], _: Dense) -> Tensor:
    """Shoemake's interpolation of the matrices as vectors."""
    (a, b), total = dense, sum(weights)
    angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
    t = weights[1] / total
    return total * (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def orthogonal(dense: Dense, weights: Sequence[float], _: Dense) -> Tensor:
    """Off the first's columns and rows, by the pseudo-inverse."""
    first, second = dense
    inverse = torch.linalg.pinv(first, rtol=1e-9)
    eyes = [torch.eye(side, dtype=first.dtype) for side in first.shape]
    left, right = eyes[0] - first @ inverse, eyes[1] - inverse @ first
    return weights[0] * first + weights[1] * left @ second @ right


def combined(dense: Dense, weights: Sequence[float]) -> Tensor:
    """The weighted sum."""
    return torch.stack([w * d for w, d in zip(weights, dense, strict=True)]).sum(0)


def dropped(dense: Dense, uniform: Dense) -> Dense:
    """DARE at density 0.5."""
    return [d * (u < 0.5) / 0.5 for d, u in zip(dense, uniform, strict=True)]


def scaled(dense: Dense, weights: Sequence[float]) -> Dense:
    """Each with its weight."""
    return [w * d for w, d in zip(weights, dense, strict=True)]


DEFINITIONS: dict[str, Callable[[Dense, Sequence[float], Dense], Tensor]] = {
    "cat": lambda d, w, _: combined(d, w),
    "linear": lambda d, w, _: combined(d, w),
    "svd": lambda d, w, _: combined(d, w),
    "slerp": slerp,
    "orthogonal": orthogonal,
    "subtract": lambda d, w, _: w[0] * d[0] - w[1] * d[1],
    "negate": lambda d, w, _: -combined(d, w),
    "magnitude_prune": lambda d, w, _: combined([top(one, 0.5) for one in d], w),
    "ties": lambda d, w, _: elect(scaled([top(one, 0.5) for one in d], w)),
    "dare": lambda d, w, u: combined(dropped(d, u), w),
    "dare_ties": lambda d, w, u: elect(scaled(dropped(d, u), w)),
    "della": della,
    "breadcrumbs": lambda d, w, _: combined([top(one, 0.91) - top(one, 0.01) for one in d], w),
}


class Case:
    """Two random adapters of one layer: linear or a convolution, of equal rank so that peft's "linear" runs too."""

    def __init__(self, seed: int) -> None:
        draw, generator = random.Random(seed), torch.manual_seed(seed)
        self.seed = seed
        self.kernel = (3, 3) if seed % 2 else ()
        self.rank, self.out, self.inn = draw.randint(1, 6), draw.randint(12, 48), draw.randint(12, 48)
        self.weights = (draw.uniform(0.2, 1.5), draw.uniform(0.2, 1.5))
        self.alphas = [draw.uniform(1, 8) for _ in range(2)]
        ones = (1,) * len(self.kernel)
        self.factors = [
            (
                torch.randn(self.rank, self.inn, *self.kernel, generator=generator),
                torch.randn(self.out, self.rank, *ones, generator=generator),
            )
            for _ in range(2)
        ]

    def dense(self) -> Dense:
        """Every ΔW in float64."""
        pairs = zip(self.factors, self.alphas, strict=True)
        return [a / self.rank * up.double().flatten(1) @ down.double().flatten(1) for (down, up), a in pairs]

    def ours(self, method: str, rank: int | None) -> Tensor:
        """What this program makes."""
        given = {}
        for name, (down, up), alpha, weight in zip("ab", self.factors, self.alphas, self.weights, strict=True):
            spec = LoraSpec(targets=("x",), rank=self.rank, alpha=alpha)
            tensors = {f"{PLACE}.lora_A.weight": down, f"{PLACE}.lora_B.weight": up}
            given[name] = Adapter({"model": spec}, tensors), weight
        made = blend(given, method, rank, self.seed).tensors
        down, up = (made[f"{PLACE}.lora_{name}.weight"].double().flatten(1) for name in "AB")
        return up @ down

    def uniform(self) -> Dense:
        """This program's draws."""
        draws = Draws(self.seed, PLACE)
        return [draws.uniform(i, one.shape) for i, one in enumerate(self.dense())]

    def theirs(self, kind: str) -> Tensor:
        """What peft makes."""
        layer = nn.Conv2d(self.inn, self.out, 3, padding=1) if self.kernel else nn.Linear(self.inn, self.out)
        model = peft_model(layer, [(*pair, alpha) for pair, alpha in zip(self.factors, self.alphas, strict=True)])
        torch.manual_seed(self.seed)
        model.add_weighted_adapter(["a", "b"], list(self.weights), "c", kind, density=0.5)
        return model.model.x.get_delta_weight("c").detach().double().flatten(1)


def peft_model(layer: nn.Module, adapters: list[tuple[Tensor, Tensor, float]]) -> peft.LoraModel:
    """One layer with peft's adapters "a" and "b"."""
    holder = nn.Module()
    holder.x = layer
    rank = len(adapters[0][0])
    model = None
    for name, (down, up, alpha) in zip("ab", adapters, strict=True):
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["x"])
        if model is None:
            model = peft.LoraModel(holder, config, name)
        else:
            model.peft_config[name] = config
            model.inject_adapter(model.model, name)
        model.model.x.lora_A[name].weight.data.copy_(down)
        model.model.x.lora_B[name].weight.data.copy_(up)
    return model


def best(matrix: Tensor, rank: int | None) -> Tensor:
    """The best approximation of a rank."""
    if rank is None:
        return matrix
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vt[:rank]


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((got - wanted).norm() / wanted.norm())


def accuracy(cases: int) -> Iterator[str]:
    """Rows of the first table."""
    yield "| blend | error: largest | median | peft's | error: largest | median |\n| --- | --- | --- | --- | --- | --- |"
    every = [Case(seed) for seed in range(cases)]
    for method, define in DEFINITIONS.items():
        cut = BLENDS[method].cuts
        mine = []
        for case in every:
            rank = case.rank if cut else None
            mine.append(error(case.ours(method, rank), best(define(case.dense(), case.weights, case.uniform()), rank)))
        shown = f"| {method} | {max(mine):.1e} | {sorted(mine)[cases // 2]:.1e} |"
        for kind in THEIRS.get(method, ()) or ("none",):
            if kind == "none":
                yield f"{shown} none | | |"
                continue
            found = []
            for case in every:
                whole = define(case.dense(), case.weights, case.uniform())
                rank = case.rank if kind != "cat" and (cut or kind == "linear") else None
                found.append(error(case.theirs(kind), best(whole, rank)))
            yield f"{shown} {kind} | {max(found):.1e} | {sorted(found)[cases // 2]:.1e} |"
            shown = "| | | |"


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


def measure_blend() -> None:
    """Blend the two; print seconds by the clock, seconds of processors, and the peak of memory in MB."""
    torch.set_num_threads(1)  # layers are small: two threads wait for each other
    pair = {"a": (sdxl_adapter(1), 0.8), "b": (sdxl_adapter(2), 0.5)}
    clock, worked = time.perf_counter(), time.process_time()
    blend(pair, "svd", 32)
    seconds = time.perf_counter() - clock, time.process_time() - worked
    print(*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def size(sample: int) -> Iterator[str]:
    """Rows of the second table."""
    command = [sys.executable, __file__, "--measure"]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    seconds, worked, peak = map(float, said.stdout.split())
    shapes = sdxl_shapes()
    chosen = random.Random(0).sample(sorted(shapes), sample)
    torch.set_num_threads(1)
    theirs, mine = timed_layers(chosen, shapes)
    yield "| measured | value | bar |\n| --- | --- | --- |"
    yield f"| modules of the UNet, of the text encoders | {sum(p.startswith('unet.') for p in shapes)}, {sum(p.startswith('text') for p in shapes)} | 722, 264 |"
    yield f"| `svd` blend of two rank-32 adapters, by the clock | {seconds:.1f} s | 15 s |"
    yield f"| the same, seconds of processors | {worked:.1f} s | |"
    yield f"| peak memory of the process, both adapters and the result in float32 in it | {peak:.0f} MB | 2000 MB |"
    yield f"| {sample} layers drawn from them: peft's `svd`, a layer | {1000 * theirs / sample:.0f} ms | |"
    yield f"| the same layers here, a layer | {1000 * mine / sample:.1f} ms | |"
    yield f"| ratio | {theirs / mine:.0f} | 50 |"


def timed_layers(chosen: list[str], shapes: dict[str, tuple[int, int]]) -> tuple[float, float]:
    """Seconds of peft's "svd" and of ours over some layers, one after the other."""
    generator, theirs, mine = torch.manual_seed(0), 0.0, 0.0
    for place in chosen:
        out, inn = shapes[place]
        pairs = [(torch.randn(32, inn, generator=generator), torch.randn(out, 32, generator=generator)) for _ in "ab"]
        given = {}
        for name, (down, up) in zip("ab", pairs, strict=True):
            tensors = {f"{PLACE}.lora_A.weight": down, f"{PLACE}.lora_B.weight": up}
            given[name] = Adapter({"model": LoraSpec(targets=("x",), rank=32)}, tensors), 0.5
        model = peft_model(nn.Linear(inn, out), [(*pair, 32.0) for pair in pairs])
        begin = time.perf_counter()
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", "svd")
        middle = time.perf_counter()
        blend(given, "svd", 32)
        theirs, mine = theirs + middle - begin, mine + time.perf_counter() - middle
    return theirs, mine


def main() -> None:
    """Measure and print; write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--layers", type=int, default=6, help="layers that peft blends, of the 986")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.measure:
        measure_blend()
        return
    load = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start"
    lines = [
        "# Blends, measured",
        "",
        f"By `scripts/bench/blends.py` on {load}; torch {torch.__version__}, peft {peft.__version__}.",
        "",
    ]
    lines += [f"{arguments.cases} random cases, relative error against the definition in float64:", ""]
    lines += list(accuracy(arguments.cases))
    lines += ["", "SDXL's size:", "", *size(arguments.layers)]
    page = "\n".join(lines) + "\n"
    print(page)
    if arguments.output:
        arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

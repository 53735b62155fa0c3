#!/usr/bin/env python3
# ruff: noqa: E501 - its tables are wide
"""Measure blends: against dense float64 arithmetic and against peft, and their time and memory at SDXL's size.

    python -m scripts.bench.blends --cases 200 --layers 6

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
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import peft
import torch
from torch import Tensor, nn

from scripts.bench.bars import Bar, Part
from scripts.bench.sdxl_blend import sdxl_shapes
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


def accuracy(cases: int) -> Part:
    """Every blend against its definition, and peft's result on the same cases."""
    lines = [
        "| blend | error: largest | median | peft's | error: largest | median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    every, worst, wrong = [Case(seed) for seed in range(cases)], 0.0, 0.0
    for method in DEFINITIONS:
        mine = sorted(our_error(case, method) for case in every)
        worst = max(worst, mine[-1])
        shown = f"| {method} | {mine[-1]:.1e} | {mine[cases // 2]:.1e} |"
        for kind in THEIRS.get(method, ()):
            theirs = sorted(their_error(case, method, kind) for case in every)
            wrong = max(wrong, theirs[-1])
            lines.append(f"{shown} {kind} | {theirs[-1]:.1e} | {theirs[cases // 2]:.1e} |")
            shown = "| | | |"
        lines += [] if method in THEIRS else [f"{shown} none | | |"]
    what = f"{len(DEFINITIONS)} blends, {cases} random cases of linear layers and convolutions: largest relative error"
    bars = [Bar(what, f"{worst:.1e} (peft's on the same: {wrong:.1e})", "1e-5", worst <= 1e-5)]
    return Part("Blends against their definitions in float64", bars, lines)


def our_error(case: Case, method: str) -> float:
    """Of this program's blend of a case, cut to the parts' rank where the blend cuts."""
    rank = case.rank if BLENDS[method].cuts else None
    return error(case.ours(method, rank), best(wanted(case, method), rank))


def their_error(case: Case, method: str, kind: str) -> float:
    """Of peft's, against the same."""
    cut = kind != "cat" and (BLENDS[method].cuts or kind == "linear")
    return error(case.theirs(kind), best(wanted(case, method), case.rank if cut else None))


def wanted(case: Case, method: str) -> Tensor:
    """The definition on full matrices."""
    return DEFINITIONS[method](case.dense(), case.weights, case.uniform())


def size(sample: int) -> Part:
    """Two adapters of SDXL's size, and peft on some of their layers."""
    command = [sys.executable, "-m", "scripts.bench.sdxl_blend"]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    seconds, worked, peak = map(float, said.stdout.split())
    shapes = sdxl_shapes()
    chosen = random.Random(0).sample(sorted(shapes), sample)
    torch.set_num_threads(1)
    theirs, mine = timed_layers(chosen, shapes)
    unet = sum(place.startswith("unet.") for place in shapes)
    what = f"two rank-32 adapters of SDXL's size ({unet} + {len(shapes) - unet} modules) blended with `svd`"
    bars = [
        Bar(
            f"{what}: one thread, by the clock",
            f"{seconds:.1f} s ({worked:.1f} s of a processor)",
            "15 s",
            worked < 15,
        ),
        Bar(
            "the same: peak memory of the process, with both adapters and the result in float32",
            f"{peak:.0f} MB",
            "2,000 MB",
            peak < 2000,
        ),
        Bar(
            f"peft's `svd` over this program's, a layer, on {sample} of these layers",
            f"{theirs / mine:.0f} times",
            "50 times",
            theirs >= 50 * mine,
        ),
    ]
    lines = [
        f"A layer takes peft {1000 * theirs / sample:.0f} ms of a processor and this program {1000 * mine / sample:.1f} ms."
    ]
    return Part("A blend of SDXL's size", bars, lines)


def timed_layers(chosen: list[str], shapes: dict[str, tuple[int, int]]) -> tuple[float, float]:
    """Seconds of a processor of peft's "svd" and of ours over some layers, one after the other."""
    generator, theirs, mine = torch.manual_seed(0), 0.0, 0.0
    for place in chosen:
        out, inn = shapes[place]
        pairs = [(torch.randn(32, inn, generator=generator), torch.randn(out, 32, generator=generator)) for _ in "ab"]
        given = {}
        for name, (down, up) in zip("ab", pairs, strict=True):
            tensors = {f"{PLACE}.lora_A.weight": down, f"{PLACE}.lora_B.weight": up}
            given[name] = Adapter({"model": LoraSpec(targets=("x",), rank=32)}, tensors), 0.5
        model = peft_model(nn.Linear(inn, out), [(*pair, 32.0) for pair in pairs])
        begin = time.process_time()
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", "svd")
        middle = time.process_time()
        blend(given, "svd", 32)
        theirs, mine = theirs + middle - begin, mine + time.process_time() - middle
    return theirs, mine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--layers", type=int, default=6, help="layers that peft blends, of the 986")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for part in (accuracy(given.cases), size(given.layers)):
        print(*part.bars, *part.lines, sep="\n")


if __name__ == "__main__":
    main()

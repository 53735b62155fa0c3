"""What the programs' readers share: the file, the model it meets, what comes out, and the arithmetic of the methods.

Nothing here uses the writer's tables: a wrong name or scale there must not be confirmed by the same table here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class File:
    """A LoRA file as read: its tensors and the text entries of its header."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Product:
    """ΔW as ``scale · up @ down``: up [out, r], down [r, in·kh·kw], views of the file's tensors."""

    up: Tensor
    down: Tensor
    scale: float


@dataclass(frozen=True)
class Whole:
    """ΔW itself, [out, in·kh·kw]."""

    delta: Tensor


Change = Product | Whole


@dataclass
class Reading:
    """What a program makes of a file.

    Attributes:
        accepted: whether it loads the file at all.
        changes: "component.path" -> the ΔW that it adds.
        ignored: keys of the file that change nothing.
        notes: what a user should know, a sentence each.
        biases: "component.path" -> what it adds to the bias.
        gate: by what the program tells for which base a file is, and what it found; "" where it does not ask.
        passed: whether the file passed that gate.
    """

    accepted: bool = True
    changes: dict[str, Change] = field(default_factory=dict[str, Change])
    ignored: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    biases: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate: str = ""
    passed: bool = True

    @staticmethod
    def refused(reason: str, gate: str = "", *, passed: bool = True) -> Reading:
        """A file that the program does not load."""
        return Reading(accepted=False, notes=[reason], gate=gate, passed=passed)

    def add_bias(self, place: str, parts: Parts, outputs: int) -> None:
        """Take what a module adds to its bias, or to a norm's, where it fits."""
        bias = parts.get("diff_b", parts.get("b_norm"))
        if bias is not None and bias.numel() == outputs:
            self.biases[place] = bias.flatten()


@dataclass(frozen=True)
class Model:
    """The model that a program has loaded.

    Attributes:
        family: "sd1", "sd2" or "sdxl".
        shapes: "component.path" -> the weight's shape flattened to [out, in·kh·kw].
        weights: the weights themselves, where the base is at hand.
        layers: residual blocks in a down block of the UNet.
        plain: up blocks without attention.
    """

    family: str
    shapes: Mapping[str, tuple[int, int]]
    weights: Mapping[str, Tensor] | None = None
    layers: int = 2
    plain: frozenset[int] = frozenset()

    def places(self, component: str) -> Iterator[tuple[str, str]]:
        """Yield ("component.path", path) of a component's modules."""
        for place in self.shapes:
            if place.startswith(component + "."):
                yield place, place.partition(".")[2]

    def weight(self, place: str) -> Tensor | None:
        """A module's weight, where the base is at hand."""
        return None if self.weights is None else self.weights.get(place)

    @cached_property
    def dotted(self) -> dict[str, str]:
        """UNet module -> its name in the original code, by walking through the blocks as that code builds them."""
        walk = dict(_walk(self.layers, self.plain))
        found = {place: _original_name(path, walk) for place, path in self.places("unet")}
        return {place: name for place, name in found.items() if name}

    @cached_property
    def original(self) -> dict[str, str]:
        """UNet module -> its flat name in the original code."""
        return {place: flat(name) for place, name in self.dotted.items()}


_LEVELS = 8  # more than any UNet has


def _walk(layers: int, plain: frozenset[int]) -> Iterator[tuple[str, str]]:
    """Yield (diffusers' block, the original block) in the order in which the original code appends its blocks."""
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    yield from (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"))
    yield from (("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"))
    yield from (("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"))
    yield ("mid_block.resnets.1", "middle_block.2")
    down, up = 1, 0
    for level in range(_LEVELS):
        for layer in range(layers):
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{down}.0"
            yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{down}.1"
            down += 1
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{down}.0.op"
        down += 1
        for layer in range(layers + 1):
            yield f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{up}.0"
            yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{up}.1"
            up += 1
        yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{up - 1}.{1 if level in plain else 2}.conv"


_INSIDE = (
    ("conv_shortcut", "skip_connection"), ("time_emb_proj", "emb_layers.1"), ("conv1", "in_layers.2"),
    ("conv2", "out_layers.3"), ("norm1", "in_layers.0"), ("norm2", "out_layers.0"),
)  # fmt: skip


def _original_name(path: str, walk: Mapping[str, str]) -> str | None:
    if path in walk:
        return walk[path]
    parts = path.split(".")
    for length in range(len(parts) - 1, 1, -1):
        front = walk.get(".".join(parts[:length]))
        if front is not None:
            inner = ".".join(parts[length:])
            return f"{front}.{dict(_INSIDE).get(inner, inner)}" if "resnets" in parts else f"{front}.{inner}"
    return None


def flat(path: str) -> str:
    """A dotted name with underscores for its dots."""
    return path.replace(".", "_")


def scalar(tensor: Tensor | None) -> float | None:
    """The number in a scalar tensor."""
    return None if tensor is None else float(tensor.item())


def product(
    up: Tensor, down: Tensor, scale: float, shape: tuple[int, int], middle: Tensor | None = None
) -> Change | None:
    """ΔW of a LoRA pair; None where it cannot be added to a weight of this shape.

    Programs reshape ``up @ down`` to the weight's shape, so factors whose count of values fits are added even where
    they are transposed.

    Args:
        up: [out, r].
        down: [r, in].
        scale: what it is multiplied with.
        shape: the weight's, flattened.
        middle: a Tucker core [r, r, kh, kw] between them.
    """
    if middle is not None:
        down = torch.einsum("rskl,si->rikl", middle.float(), down.float().flatten(1))
    up, down = up.flatten(1), down.flatten(1)
    if up.shape[1] != down.shape[0] or up.shape[0] * down.shape[1] != prod(shape):
        return None
    if (up.shape[0], down.shape[1]) == shape:
        return Product(up, down, scale)
    return Whole(scale * (up.float() @ down.float()).reshape(shape))


def whole(delta: Tensor, shape: tuple[int, int]) -> Change | None:
    """ΔW reshaped to the weight's shape, or None where it does not fit."""
    return Whole(delta.reshape(shape)) if delta.numel() == prod(shape) else None


def tucker(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rebuild a convolution [out, in, kh, kw] of core [a, b, kh, kw], first [a, out], second [b, in]."""
    return torch.einsum("abkl,ao,bi->oikl", core.float(), first.float(), second.float())


def loha(parts: Parts, scale: float, shape: tuple[int, int]) -> Change | None:
    """ΔW of LoHa, the elementwise product of two low-rank matrices."""
    halves = []
    for half in "12":
        first, second, core = parts[f"hada_w{half}_a"], parts[f"hada_w{half}_b"], parts.get(f"hada_t{half}")
        halves.append(first.float() @ second.float() if core is None else tucker(core, first, second).flatten(1))
    return whole(scale * halves[0] * halves[1], shape)


def lokr(parts: Parts, alpha: float | None, shape: tuple[int, int]) -> Change | None:
    """ΔW of LoKr, a Kronecker product; alpha counts only where a factor is factorised."""
    rank = None
    sides = []
    for half in "12":
        side = parts.get(f"lokr_w{half}")
        if side is None:
            first, second, core = parts[f"lokr_w{half}_a"], parts[f"lokr_w{half}_b"], parts.get(f"lokr_t{half}")
            rank = second.shape[0]
            side = first.float() @ second.float() if core is None else tucker(core, first, second)
        sides.append(side.float())
    small, large = sides
    small = small.reshape(*small.shape, *[1] * (large.ndim - small.ndim))
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return whole(scale * torch.kron(small, large.contiguous()), shape)


def turned(blocks: Tensor, rescale: Tensor | None, limit: float, weight: Tensor) -> Change | None:
    """ΔW of OFT (blocks [n, b, b]) or BOFT ([m, n, b, b]) over the outputs of a weight; None where they do not fit.

    Args:
        blocks: their skew parts are Cayley's.
        rescale: a factor for each output, or None.
        limit: how long all skew parts together may be; 0 is no limit.
        weight: W.
    """
    side, outputs = blocks.shape[-1], weight.shape[0]
    if blocks.shape[-3] * side != outputs:
        return None
    skew = blocks.float() - blocks.float().transpose(-1, -2)
    length = skew.norm() + 1e-8
    skew = torch.where(length > limit, skew * limit / length, skew) if limit > 0 else skew
    eye = torch.eye(side, device=skew.device)
    rotation = (eye + skew) @ torch.linalg.inv(eye - skew)
    rows = weight.float().flatten(1)
    if blocks.ndim == 3:
        rows = (rotation.mT @ rows.reshape(-1, side, rows.shape[1])).reshape(rows.shape)
    else:
        for step, one in enumerate(rotation):
            half = 2**step * side // 2
            order = torch.arange(outputs).reshape(-1, 2, half).transpose(1, 2).flatten()
            order = order.to(rows.device)
            mixed = (one @ rows[order].reshape(-1, side, rows.shape[1])).reshape(rows.shape)
            rows = torch.empty_like(rows).index_copy(0, order, mixed)
    rows = rows if rescale is None else rows * rescale.float().reshape(-1, 1)
    return Whole(rows - weight.float().flatten(1))


def glora(parts: Parts, scale: float, weight: Tensor, *, new: bool) -> Change | None:
    """ΔW of GLoRA, ``α/r (W A + B)``; None where it does not fit.

    Args:
        parts: a1, a2, b1 and b2; A is a2 a1 and B is b2 b1 in files from before May 2024, since then a1 a2 and b1 b2.
        scale: α, or α/r where the program divides it.
        weight: W.
        new: whether the later layout is known.
    """
    inner, outer, low, high = (parts[f"{name}.weight"].float().flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if (outer.shape[0], high.shape[0]) != (weight[0].numel(), weight.shape[0]):  # kernels are in the later one alone
        if not new:
            return None
        inner, outer, low, high = outer, inner, high, low
    fits = outer.shape == (weight.shape[1], inner.shape[0]) and inner.shape[1] == weight.shape[1]
    if not fits or high.shape[1] != low.shape[0] or high.shape[0] * low.shape[1] != weight.numel():
        return None
    within = torch.einsum("oi...,ij->oj...", weight.float(), outer @ inner).flatten(1)
    return Whole(scale * (within + high @ low))


def dora(change: Change, magnitudes: Tensor, weight: Tensor, *, norm: Literal["output", "input", "base"]) -> Change:
    """ΔW of DoRA as a program has it: magnitudes × (W + ΔV) / norm − W.

    Args:
        change: ΔV.
        magnitudes: in a shape that multiplies the weight.
        weight: W.
        norm: of W + ΔV by output row (as the paper and peft), by input column (as LyCORIS), or of the rows of W alone.
    """
    added = change.delta if isinstance(change, Whole) else change.scale * (change.up.float() @ change.down.float())
    original = weight.float()
    turned = original + added.reshape(original.shape)
    if norm == "input":
        length = turned.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (turned.ndim - 2))
    else:
        rows = original if norm == "base" else turned
        length = rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (turned.ndim - 1))
    scaled = turned * (magnitudes.float() / length)
    return Whole((scaled - original).flatten(1))


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split every key at its first dot: module -> suffix -> tensor."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, suffix = key.partition(".")
        groups.setdefault(module, {})[suffix] = tensor
    return groups


GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
NEEDS_BASE = "DoRA was not computed: it needs the base's weights (base=…)"
OTHER_AXIS = "takes DoRA's magnitudes by output for magnitudes by input: wrong weights"
OTHER_LENGTH = "divides DoRA's magnitudes by the lengths of W's rows, not of those of W + ΔV"

"""Codes of 8 and 4 bits for a frozen weight: each a way there, and a way back that works as recorded and compiled.

A weight comes as rows, [out, columns] float32: a row is what makes one output. The way back has no data-dependent
control flow and never waits for the device.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = torch.finfo(torch.float32).tiny
BLOCK = 64
"""Weights that share a scale in NF4."""
_BLOCKS = 256  # scales that share a scale


class Code(Protocol):
    """One code.

    Attributes:
        bits: of a weight, what its scales take included.
        constants: names of what is kept and is the same for all layers on a device.
    """

    bits: float
    constants: tuple[str, ...]

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        """Return what is kept: "codes", integers, and whatever else by name."""
        ...

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return the weights of what ``encode`` gave, in its order, in a type; the caller knows their shape."""
        ...


class Int8:
    """``W ≈ s ∘ Q`` with ``sᵢ = max|Wᵢ| / 127`` for each row i, and Q rounded to integers."""

    bits = 8.0
    constants: tuple[str, ...] = ()

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        """Return codes [out, columns] int8 and scale [out, 1] float32."""
        scale = rows.abs().amax(1, keepdim=True).clamp_min(_TINY) / 127
        return {"codes": (rows / scale).round().to(torch.int8), "scale": scale}

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return ``s ∘ Q``."""
        codes, scale = stored
        return scaled(codes, scale, dtype)


class Fp8:
    """``W ≈ s ∘ Q`` with ``sᵢ = max|Wᵢ| / 448`` for each row i, and Q in e4m3 (arXiv:2209.05433)."""

    bits = 8.0
    constants: tuple[str, ...] = ()

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        """Return codes [out, columns], e4m3's bits as uint8, and scale [out, 1] float32."""
        scale = rows.abs().amax(1, keepdim=True).clamp_min(_TINY) / torch.finfo(torch.float8_e4m3fn).max
        return {"codes": (rows / scale).to(torch.float8_e4m3fn).view(torch.uint8), "scale": scale}

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return ``s ∘ Q``."""
        codes, scale = stored
        return scaled(codes.view(torch.float8_e4m3fn).to(dtype), scale, dtype)


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values of NF4: quantiles of a normal distribution, 0 among them (arXiv:2305.14314, appendix E)."""


class Nf4:
    """``W ≈ a_b · NF4[Q]`` with a_b the largest of each 64 weights, and these kept in 8 bits (arXiv:2305.14314, §3).

    The 64-weight scales are kept as ``a_b ≈ m + s_c · R`` for each 256 of them, R in int8; the paper has R in fp8, but
    they lie close around their mean m, where evenly spaced steps are finer. Codes are chosen for the scales as kept.
    """

    bits = 4 + 8 / BLOCK + 32 / (BLOCK * _BLOCKS)
    constants: tuple[str, ...] = ("table",)

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        """Return codes [n / 2] uint8, the first of two in the upper half, blocks [·, 256] int8, scale [·, 1], mean [1].

        Scale and mean are float32, and so is the table of what two codes mean. n, the number of weights, must be a
        multiple of 64.
        """
        parts = rows.reshape(-1, BLOCK)
        most = parts.abs().amax(1)
        mean = most.mean()[None]
        apart = F.pad(most - mean, (0, -len(most) % _BLOCKS)).view(-1, _BLOCKS)
        scale = apart.abs().amax(1, keepdim=True).clamp_min(_TINY) / 127
        blocks = (apart / scale).round().to(torch.int8)
        blocks += mean + scale * blocks < 0  # no a_b is below 0: a step up from there is above
        table = pair_table(rows.device)
        values = table[:16, 1].contiguous()
        relative = parts / self._most(blocks, scale, mean, len(parts)).clamp_min(_TINY)
        nearest = torch.bucketize(relative, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8).view(-1, 2)
        codes = nearest[:, 0] << 4 | nearest[:, 1]
        return {"codes": codes, "blocks": blocks, "scale": scale, "mean": mean, "table": table}

    def decode(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return ``a_b · NF4[Q]``, [blocks, 64]."""
        codes, blocks, scale, mean, table = stored
        parts = pairs(codes, table, dtype).view(-1, BLOCK)
        return scaled(parts, self._most(blocks, scale, mean, len(parts)), dtype)

    def _most(self, blocks: Tensor, scale: Tensor, mean: Tensor, count: int) -> Tensor:
        """a_b as kept, [count, 1] float32."""
        return torch.addcmul(mean, blocks, scale).view(-1, 1)[:count]


def pair_table(device: torch.device) -> Tensor:
    """Return the two values that a byte of NF4's codes means, [256, 2] float32."""
    values = torch.tensor(NF4, device=device)
    return torch.stack((values[:, None].expand(16, 16), values.expand(16, 16)), -1).view(256, 2)


def pairs(codes: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of codes, two a byte: one look into a table of pairs, each pair read as one integer.

    Args:
        codes: [n / 2] uint8.
        table: [256, 2].
        dtype: float16, bfloat16 or float32; others are made of float32.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    whole = table.to(dtype) if half else table
    together = whole.view(torch.int32 if half else torch.int64).view(256)
    return together.index_select(0, codes.int()).view(whole.dtype).to(dtype)


def scaled(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return their product in a type: multiplied in float32 and rounded once, in one pass over the memory."""
    whole = torch.float32 if dtype.itemsize <= 4 else dtype
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    return torch.mul(codes, scale.to(whole), out=out)


CODES: dict[str, Code] = {"fp8": Fp8(), "int8": Int8(), "nf4": Nf4()}
"""What ``train.memory.base`` names; a new code is a row here and its name in compute/thrift.py."""

OF_CONVOLUTIONS: dict[str, str] = {"nf4": "int8"}
"""The code of convolutions, where it is not the run's: 4 bits cost them several times more than linear layers."""

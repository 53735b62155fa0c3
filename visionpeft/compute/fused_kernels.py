# pyright: basic, reportMissingImports=false, reportIndexIssue=false
# Bodies of kernels are Triton's language, of which only the grammar is Python's.
"""Triton kernels of a UNet's norms and gates, on pictures whose channels lie together; importable where triton is.

A group's mean and variance are taken in parts: each program sums its rows of a few whole groups, and what needs the
whole puts the parts together by itself (Chan et al. 1979). So a norm is two kernels each way, whose sums come in the
same order every time, and its activation costs none of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDE, _TILE, _PROGRAMS, _PARTS = 128, 2048, 264, 64
"""Channels and elements of a tile, about; programs that keep a GPU busy; parts of a group at most."""


@triton.jit
def _channels(G: tl.tensor, C: tl.tensor, CG: tl.constexpr, GB: tl.constexpr, CP: tl.constexpr) -> tl.tensor:
    """Groups [GB], channels [GB, CP], and which of these there are."""
    group = tl.program_id(1) * GB + tl.arange(0, GB)
    place = tl.arange(0, CP)
    channel = group[:, None] * CG + place[None, :]
    return group, channel, (place[None, :] < CG) & (group[:, None] < G)


@triton.jit
def _tile(
    source: tl.tensor, rows: tl.tensor, channel: tl.tensor, mask: tl.tensor, P: tl.tensor, C: tl.tensor
) -> tl.tensor:
    """Rows of a picture, [rows, GB, CP] float32."""
    first = (tl.program_id(2).to(tl.int64) * P + rows.to(tl.int64))[:, None, None] * C
    return tl.load(source + first + channel[None, :, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _shift(added: tl.tensor, channel: tl.tensor, there: tl.tensor, C: tl.tensor, ADDED: tl.constexpr) -> tl.tensor:
    """What is added to a picture's channels before its norm, [GB, CP] float32."""
    if ADDED:
        return tl.load(added + tl.program_id(2) * C + channel, mask=there, other=0.0).to(tl.float32)
    else:  # noqa: RET505 - the compiler knows no other way
        return tl.zeros(channel.shape, tl.float32)


@triton.jit
def _moments(
    x: tl.tensor,
    added: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    P: tl.tensor,
    C: tl.tensor,
    G: tl.tensor,
    ROWS: tl.constexpr,
    CG: tl.constexpr,
    GB: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
    ADDED: tl.constexpr,
) -> None:
    """Mean and sum of squared differences from it, of a part of each group."""
    group, channel, there = _channels(G, C, CG, GB, CP)
    shift = _shift(added, channel, there, C, ADDED)
    mean, square, seen = tl.zeros([GB], tl.float32), tl.zeros([GB], tl.float32), 0.0
    for start in range(0, ROWS, BP):
        rows = tl.program_id(0) * ROWS + start + tl.arange(0, BP)
        mask = (rows < P)[:, None, None] & there[None, :, :]
        value = tl.where(mask, _tile(x, rows, channel, mask, P, C) + shift[None, :, :], 0.0)
        left = P - (tl.program_id(0) * ROWS + start)
        count = tl.minimum(tl.maximum(left, 0), BP).to(tl.float32) * CG
        here = tl.sum(tl.sum(value, 2), 0) / tl.maximum(count, 1.0)
        off = tl.where(mask, value - here[None, :, None], 0.0)
        apart, total = here - mean, tl.maximum(seen + count, 1.0)
        square += tl.sum(tl.sum(off * off, 2), 0) + apart * apart * seen * count / total
        mean += apart * count / total
        seen += count
    place = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * G + group
    tl.store(means + place, mean, mask=group < G)
    tl.store(squares + place, square, mask=group < G)


@triton.jit
def _parts(source: tl.tensor, group: tl.tensor, G: tl.tensor, PARTS: tl.tensor, PP: tl.constexpr) -> tl.tensor:
    """The parts of a group, [PP, GB]."""
    part = tl.arange(0, PP)
    place = (tl.program_id(2) * PARTS + part[:, None]) * G + group[None, :]
    return tl.load(source + place, mask=(part[:, None] < PARTS) & (group[None, :] < G), other=0.0)


@triton.jit
def _normalise(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    out: tl.tensor,
    mean_of: tl.tensor,
    scale_of: tl.tensor,
    P: tl.tensor,
    C: tl.tensor,
    G: tl.tensor,
    ROWS: tl.constexpr,
    PARTS: tl.tensor,
    EPS: tl.tensor,
    CG: tl.constexpr,
    GB: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
    PP: tl.constexpr,
    ADDED: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    """``silu((x + added − mean) / deviation · weight + bias)``."""
    group, channel, there = _channels(G, C, CG, GB, CP)
    shift = _shift(added, channel, there, C, ADDED)
    count = tl.minimum(tl.maximum(P - tl.arange(0, PP) * ROWS, 0), ROWS).to(tl.float32) * CG
    part = _parts(means, group, G, PARTS, PP)
    whole = P * CG * 1.0
    mean = tl.sum(part * count[:, None], 0) / whole
    apart = part - mean[None, :]
    variance = (tl.sum(_parts(squares, group, G, PARTS, PP), 0) + tl.sum(apart * apart * count[:, None], 0)) / whole
    scale = 1.0 / tl.sqrt(variance + EPS)
    if tl.program_id(0) == 0:
        tl.store(mean_of + tl.program_id(2) * G + group, mean, mask=group < G)
        tl.store(scale_of + tl.program_id(2) * G + group, scale, mask=group < G)
    slope = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32) * scale[:, None]
    level = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32) + (shift - mean[:, None]) * slope
    for start in range(0, ROWS, BP):
        rows = tl.program_id(0) * ROWS + start + tl.arange(0, BP)
        mask = (rows < P)[:, None, None] & there[None, :, :]
        value = _tile(x, rows, channel, mask, P, C) * slope[None, :, :] + level[None, :, :]
        if SILU:
            value = value * tl.sigmoid(value)
        first = (tl.program_id(2).to(tl.int64) * P + rows.to(tl.int64))[:, None, None] * C
        tl.store(out + first + channel[None, :, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _steep(value: tl.tensor, gradient: tl.tensor, slope: tl.tensor, level: tl.tensor, SILU: tl.constexpr) -> tl.tensor:
    """The gradient of what the activation was given."""
    if SILU:
        given = value * slope[None, :, :] + level[None, :, :]
        open_ = tl.sigmoid(given)
        return gradient * open_ * (1.0 + given * (1.0 - open_))
    else:  # noqa: RET505
        return gradient


@triton.jit
def _gradient(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    mean_of: tl.tensor,
    scale_of: tl.tensor,
    gradient: tl.tensor,
    sums: tl.tensor,
    products: tl.tensor,
    out: tl.tensor,
    P: tl.tensor,
    C: tl.tensor,
    G: tl.tensor,
    ROWS: tl.constexpr,
    PARTS: tl.tensor,
    CG: tl.constexpr,
    GB: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
    PP: tl.constexpr,
    ADDED: tl.constexpr,
    SILU: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """Parts of the sums that a group's gradient needs; LAST: with them, the gradient of x."""
    group, channel, there = _channels(G, C, CG, GB, CP)
    shift = _shift(added, channel, there, C, ADDED)
    mean = tl.load(mean_of + tl.program_id(2) * G + group, mask=group < G, other=0.0)
    scale = tl.load(scale_of + tl.program_id(2) * G + group, mask=group < G, other=0.0)
    share = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32)
    slope = share * scale[:, None]
    level = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32) + (shift - mean[:, None]) * slope
    sum_, product = tl.zeros([GB], tl.float32), tl.zeros([GB], tl.float32)
    if LAST:
        whole = P * CG * 1.0
        sum_ = tl.sum(_parts(sums, group, G, PARTS, PP), 0) / whole
        product = tl.sum(_parts(products, group, G, PARTS, PP), 0) / whole
    for start in range(0, ROWS, BP):
        rows = tl.program_id(0) * ROWS + start + tl.arange(0, BP)
        mask = (rows < P)[:, None, None] & there[None, :, :]
        value = _tile(x, rows, channel, mask, P, C)
        steep = _steep(value, _tile(gradient, rows, channel, mask, P, C), slope, level, SILU) * share[None, :, :]
        even = (value + (shift - mean[:, None])[None, :, :]) * scale[None, :, None]
        if LAST:
            found = (steep - sum_[None, :, None] - even * product[None, :, None]) * scale[None, :, None]
            first = (tl.program_id(2).to(tl.int64) * P + rows.to(tl.int64))[:, None, None] * C
            tl.store(out + first + channel[None, :, :], found.to(out.dtype.element_ty), mask=mask)
        else:
            steep = tl.where(mask, steep, 0.0)
            sum_ += tl.sum(tl.sum(steep, 2), 0)
            product += tl.sum(tl.sum(steep * even, 2), 0)
    if not LAST:
        place = (tl.program_id(2) * PARTS + tl.program_id(0)) * G + group
        tl.store(sums + place, sum_, mask=group < G)
        tl.store(products + place, product, mask=group < G)


class _Shape(NamedTuple):
    """How a norm is cut into programs."""

    grid: tuple[int, int, int]
    numbers: tuple[int, int, int, int]
    sizes: dict[str, int]


def _shape(x: Tensor, groups: int) -> _Shape:
    count, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    width = channels // groups
    padded = triton.next_power_of_2(width)
    together = min(triton.next_power_of_2(groups), max(1, _WIDE // padded))
    tile = max(1, min(_TILE // (together * padded), triton.next_power_of_2(pixels)))
    across = -(-groups // together)
    parts = max(1, min(-(-pixels // tile), _PARTS, _PROGRAMS // (count * across)))
    rows = -(-pixels // parts)
    rows = -(-rows // tile) * tile
    parts = -(-pixels // rows)
    sizes = {"CG": width, "GB": together, "CP": padded, "BP": tile}
    return _Shape((parts, across, count), (pixels, channels, groups, rows), sizes)


def normalised(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``fused.norm_silu`` does, and each group's mean and 1 / deviation, [N, groups] float32."""
    grid, numbers, sizes = _shape(x, groups)
    parts = grid[0]
    means, squares = x.new_empty(2, len(x), parts, groups, dtype=torch.float32).unbind()
    mean, scale = x.new_empty(2, len(x), groups, dtype=torch.float32).unbind()
    out = torch.empty_like(x, memory_format=torch.channels_last)
    there: dict[str, Any] = {"ADDED": added is not None, "num_warps": 4}
    shift = x if added is None else added
    _moments[grid](x, shift, means, squares, *numbers, **sizes, **there)
    _normalise[grid](
        x, shift, weight, bias, means, squares, out, mean, scale, *numbers, parts, eps,
        PP=triton.next_power_of_2(parts), SILU=silu, **sizes, **there,
    )  # fmt: skip
    return out, mean, scale


def norm_gradient(
    gradient: Tensor, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, *,
    silu: bool,
) -> Tensor:  # fmt: skip
    """Return the gradient of x, given that of what ``normalised`` returned for it."""
    groups = mean.shape[1]
    grid, numbers, sizes = _shape(x, groups)
    parts = grid[0]
    sums, products = x.new_empty(2, len(x), parts, groups, dtype=torch.float32).unbind()
    out = torch.empty_like(x, memory_format=torch.channels_last)
    shift = x if added is None else added
    for last in (False, True):
        _gradient[grid](
            x, shift, weight, bias, mean, scale, gradient, sums, products, out, *numbers, parts,
            PP=triton.next_power_of_2(parts), ADDED=added is not None, SILU=silu, LAST=last, num_warps=4, **sizes,
        )  # fmt: skip
    return out


@triton.jit
def _gate(both: tl.tensor, out: tl.tensor, C: tl.tensor, TOTAL: tl.tensor, BLOCK: tl.constexpr) -> None:
    """``value · gelu(gate)`` of rows [value, gate]."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = place // C
    source = both + row * C + place
    value = tl.load(source, mask=place < TOTAL, other=0.0).to(tl.float32)
    gate = tl.load(source + C, mask=place < TOTAL, other=0.0).to(tl.float32)
    found = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + place, found.to(out.dtype.element_ty), mask=place < TOTAL)


@triton.jit
def _gate_gradient(
    both: tl.tensor, gradient: tl.tensor, out: tl.tensor, C: tl.tensor, TOTAL: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """The gradient of ``_gate``'s rows."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = (place // C) * C + place
    value = tl.load(both + source, mask=place < TOTAL, other=0.0).to(tl.float32)
    gate = tl.load(both + source + C, mask=place < TOTAL, other=0.0).to(tl.float32)
    came = tl.load(gradient + place, mask=place < TOTAL, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(out + source, (came * gate * below).to(out.dtype.element_ty), mask=place < TOTAL)
    tl.store(out + source + C, (came * value * (below + gate * density)).to(out.dtype.element_ty), mask=place < TOTAL)


_BLOCK = 1024


def gated(both: Tensor) -> Tensor:
    """Return what ``fused.geglu`` does, for contiguous rows."""
    width = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    _gate[(-(-out.numel() // _BLOCK),)](both, out, width, out.numel(), BLOCK=_BLOCK, num_warps=4)
    return out


def gate_gradient(gradient: Tensor, both: Tensor) -> Tensor:
    """Return the gradient of the rows that ``gated`` was given."""
    out = torch.empty_like(both)
    width, total = both.shape[-1] // 2, gradient.numel()
    _gate_gradient[(-(-total // _BLOCK),)](both, gradient, out, width, total, BLOCK=_BLOCK, num_warps=4)
    return out

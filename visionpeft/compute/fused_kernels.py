# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false
# Bodies of kernels are Triton's language, of which only the grammar is Python's.
"""Triton kernels of a UNet's norms and gates, on pictures whose channels lie together; importable where triton is.

A norm is three kernels each way: moments of each channel, part by part; those of each group, from which a slope and a
level come for each channel; and the picture by these, with its activation. No kernel but the middle one, which is tiny,
knows of groups, so that few are compiled; every sum has one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from visionpeft.compute.fused import WIDEST

_ROWS, _CHANNELS = 32, 64
"""Pixels and channels of a tile."""
_PARTS = 64
"""Parts at most that a picture's pixels are summed in."""

_VARYING = ["P", "ROWS", "PARTS", "CG"]
"""Numbers whose values the compiler is not to look at: each would make a kernel of its own."""


@triton.jit(do_not_specialize=_VARYING)
def _moments(
    x: tl.tensor, means: tl.tensor, squares: tl.tensor, P: tl.tensor, C: tl.tensor, ROWS: tl.tensor,
    BP: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """Mean, and sum of squared differences from it, of a part of each channel (Chan et al. 1979)."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    mean, square, seen = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    first = tl.program_id(0) * ROWS
    end = tl.minimum(first + ROWS, P)
    while first < end:
        rows = first + tl.arange(0, BP)
        mask = (rows < end)[:, None] & (channel < C)[None, :]
        place = (tl.program_id(2).to(tl.int64) * P + rows)[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(end - first, BP).to(tl.float32)
        here = tl.sum(value, 0) / count
        off = tl.where(mask, value - here[None, :], 0.0)
        apart, total = here - mean, seen + count
        square += tl.sum(off * off, 0) + apart * apart * seen * count / total
        mean += apart * count / total
        seen = total
        first += BP
    place = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * C + channel
    tl.store(means + place, mean, mask=channel < C)
    tl.store(squares + place, square, mask=channel < C)


@triton.jit(do_not_specialize=_VARYING)
def _settle(
    means: tl.tensor, squares: tl.tensor, added: tl.tensor, weight: tl.tensor, bias: tl.tensor, slopes: tl.tensor,
    levels: tl.tensor, centres: tl.tensor, scales: tl.tensor, P: tl.tensor, C: tl.tensor, CG: tl.tensor,
    ROWS: tl.tensor, PARTS: tl.tensor, EPS: tl.tensor, ADDED: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """A group's 1 / deviation, and for each channel ``slope`` and ``level`` of the norm, and what is its middle."""
    group, picture = tl.program_id(0), tl.program_id(1)
    part, place = tl.arange(0, BB), tl.arange(0, BC)
    channel, there = group * CG + place, place < CG
    mask = (part < PARTS)[:, None] & there[None, :]
    count = tl.minimum(tl.maximum(P - part * ROWS, 0), ROWS).to(tl.float32)[:, None]
    source = (picture * PARTS + part)[:, None] * C + channel[None, :]
    of_part = tl.load(means + source, mask=mask, other=0.0)
    mean = tl.sum(of_part * count, 0) / P
    off = tl.where(mask, of_part - mean[None, :], 0.0)
    square = tl.sum(tl.load(squares + source, mask=mask, other=0.0) + off * off * count, 0)
    shift = tl.zeros([BC], tl.float32)
    if ADDED:
        shift = tl.load(added + picture * C + channel, mask=there, other=0.0).to(tl.float32)
    middle = tl.sum(mean + shift, 0) / CG
    apart = tl.where(there, mean + shift - middle, 0.0)
    variance = (tl.sum(square, 0) / P + tl.sum(apart * apart, 0)) / CG
    scale = 1.0 / tl.sqrt(variance + EPS)
    slope = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32) * scale
    level = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32) + (shift - middle) * slope
    tl.store(slopes + picture * C + channel, slope, mask=there)
    tl.store(levels + picture * C + channel, level, mask=there)
    tl.store(centres + picture * C + channel, middle - shift, mask=there)
    tl.store(scales + picture * tl.num_programs(0) + group, scale)


@triton.jit
def _by_channel(source: tl.tensor, channel: tl.tensor, C: tl.tensor) -> tl.tensor:
    """Numbers of the picture's channels, [1, BC] float32."""
    return tl.load(source + tl.program_id(2) * C + channel, mask=channel < C, other=0.0)[None, :]


@triton.jit
def _steep(value: tl.tensor, came: tl.tensor, slope: tl.tensor, level: tl.tensor, SILU: tl.constexpr) -> tl.tensor:
    """The gradient of what the activation was given."""
    if SILU:
        given = value * slope + level
        opened = tl.sigmoid(given)
        came = came * opened * (1.0 + given * (1.0 - opened))
    return came


@triton.jit(do_not_specialize=_VARYING)
def _by_slope(
    x: tl.tensor, slopes: tl.tensor, levels: tl.tensor, out: tl.tensor, P: tl.tensor, C: tl.tensor,
    SILU: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """``silu(slope · x + level)``."""
    rows, channel = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (rows < P)[:, None] & (channel < C)[None, :]
    place = (tl.program_id(2).to(tl.int64) * P + rows)[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value = value * _by_channel(slopes, channel, C) + _by_channel(levels, channel, C)
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_VARYING)
def _steepness(
    x: tl.tensor, gradient: tl.tensor, slopes: tl.tensor, levels: tl.tensor, centres: tl.tensor, sums: tl.tensor,
    products: tl.tensor, P: tl.tensor, C: tl.tensor, ROWS: tl.tensor, SILU: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr,
) -> None:  # fmt: skip
    """Sums of a part of each channel: of the activation's gradient, and of it times the distance from the middle."""
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    slope, level = _by_channel(slopes, channel, C), _by_channel(levels, channel, C)
    centre = _by_channel(centres, channel, C)
    sum_, product = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    first = tl.program_id(0) * ROWS
    end = tl.minimum(first + ROWS, P)
    while first < end:
        rows = first + tl.arange(0, BP)
        mask = (rows < end)[:, None] & (channel < C)[None, :]
        place = (tl.program_id(2).to(tl.int64) * P + rows)[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        came = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
        steep = _steep(value, came, slope, level, SILU)
        sum_ += tl.sum(steep, 0)
        product += tl.sum(steep * (value - centre), 0)
        first += BP
    place = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * C + channel
    tl.store(sums + place, sum_, mask=channel < C)
    tl.store(products + place, product, mask=channel < C)


@triton.jit(do_not_specialize=_VARYING)
def _settle_back(
    sums: tl.tensor, products: tl.tensor, weight: tl.tensor, scales: tl.tensor, bends: tl.tensor, flats: tl.tensor,
    P: tl.tensor, C: tl.tensor, CG: tl.tensor, PARTS: tl.tensor, BB: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """What a group's moments, which moved too, take from the gradient: ``bend`` times the distance, and ``flat``."""
    group, picture = tl.program_id(0), tl.program_id(1)
    part, place = tl.arange(0, BB), tl.arange(0, BC)
    channel, there = group * CG + place, place < CG
    mask = (part < PARTS)[:, None] & there[None, :]
    source = (picture * PARTS + part)[:, None] * C + channel[None, :]
    share = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32)
    scale = tl.load(scales + picture * tl.num_programs(0) + group)
    whole = tl.sum(share * tl.sum(tl.load(sums + source, mask=mask, other=0.0), 0), 0) / CG / P
    product = tl.sum(share * tl.sum(tl.load(products + source, mask=mask, other=0.0), 0), 0) / CG / P
    even = tl.zeros([BC], tl.float32)
    tl.store(bends + picture * C + channel, even - scale * scale * scale * product, mask=there)
    tl.store(flats + picture * C + channel, even - scale * whole, mask=there)


@triton.jit(do_not_specialize=_VARYING)
def _back(
    x: tl.tensor, gradient: tl.tensor, slopes: tl.tensor, levels: tl.tensor, centres: tl.tensor, bends: tl.tensor,
    flats: tl.tensor, out: tl.tensor, P: tl.tensor, C: tl.tensor, SILU: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr,
) -> None:  # fmt: skip
    """``slope · steep + bend · (x − middle) + flat``."""
    rows, channel = tl.program_id(0) * BP + tl.arange(0, BP), tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (rows < P)[:, None] & (channel < C)[None, :]
    place = (tl.program_id(2).to(tl.int64) * P + rows)[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    came = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
    slope = _by_channel(slopes, channel, C)
    steep = _steep(value, came, slope, _by_channel(levels, channel, C), SILU)
    bent = _by_channel(bends, channel, C) * (value - _by_channel(centres, channel, C))
    found = slope * steep + bent + _by_channel(flats, channel, C)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=mask)


def _cut(pixels: int) -> tuple[int, int]:
    """Pixels of a part, and how many parts there are."""
    rows = -(-pixels // (_PARTS * _ROWS)) * _ROWS
    return rows, -(-pixels // rows)


def normalised(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool
) -> tuple[Tensor, ...]:
    """Return ``silu(norm(x + added))``, and what ``norm_gradient`` needs beside x and weight.

    Args:
        x: [N, C, H, W], channels last.
        added: [N, C], or None.
        weight: of the norm, [C].
        bias: of the norm, [C].
        groups: of at most ``WIDEST`` channels.
        eps: of the norm.
        silu: whether there is an activation.
    """
    count, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    rows, parts = _cut(pixels)
    across = -(-channels // _CHANNELS)
    means, squares = x.new_empty(2, count, parts, channels, dtype=torch.float32).unbind()
    slopes, levels, centres = x.new_empty(3, count, channels, dtype=torch.float32).unbind()
    scales = x.new_empty(count, groups, dtype=torch.float32)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    _moments[parts, across, count](x, means, squares, pixels, channels, rows, BP=_ROWS, BC=_CHANNELS)
    _settle[groups, count](
        means, squares, x if added is None else added, weight, bias, slopes, levels, centres, scales, pixels, channels,
        channels // groups, rows, parts, eps, ADDED=added is not None, BB=_PARTS, BC=WIDEST,
    )  # fmt: skip
    _by_slope[-(-pixels // _ROWS), across, count](
        x, slopes, levels, out, pixels, channels, SILU=silu, BP=_ROWS, BC=_CHANNELS
    )
    return out, slopes, levels, centres, scales


def norm_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, slopes: Tensor, levels: Tensor, centres: Tensor, scales: Tensor, *,
    silu: bool,
) -> Tensor:  # fmt: skip
    """Return the gradient of x, given that of what ``normalised`` returned for it, channels last."""
    count, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    rows, parts = _cut(pixels)
    across, groups = -(-channels // _CHANNELS), scales.shape[1]
    sums, products = x.new_empty(2, count, parts, channels, dtype=torch.float32).unbind()
    bends, flats = x.new_empty(2, count, channels, dtype=torch.float32).unbind()
    out = torch.empty_like(x, memory_format=torch.channels_last)
    _steepness[parts, across, count](
        x, gradient, slopes, levels, centres, sums, products, pixels, channels, rows, SILU=silu, BP=_ROWS,
        BC=_CHANNELS,
    )  # fmt: skip
    _settle_back[groups, count](
        sums, products, weight, scales, bends, flats, pixels, channels, channels // groups, parts, BB=_PARTS, BC=WIDEST
    )
    _back[-(-pixels // _ROWS), across, count](
        x, gradient, slopes, levels, centres, bends, flats, out, pixels, channels, SILU=silu, BP=_ROWS, BC=_CHANNELS
    )
    return out


@triton.jit(do_not_specialize=["R"])
def _gate(both: tl.tensor, out: tl.tensor, R: tl.tensor, C: tl.tensor, BR: tl.constexpr, BC: tl.constexpr) -> None:
    """``value · gelu(gate)`` of rows [value, gate]."""
    row = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)[:, None]
    place = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (row < R) & (place < C)
    value = tl.load(both + 2 * row * C + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(both + 2 * row * C + C + place, mask=mask, other=0.0).to(tl.float32)
    found = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + row * C + place, found.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["R"])
def _gate_back(
    both: tl.tensor, gradient: tl.tensor, out: tl.tensor, R: tl.tensor, C: tl.tensor, BR: tl.constexpr,
    BC: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient of ``_gate``'s rows."""
    row = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)[:, None]
    place = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (row < R) & (place < C)
    value = tl.load(both + 2 * row * C + place, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(both + 2 * row * C + C + place, mask=mask, other=0.0).to(tl.float32)
    came = tl.load(gradient + row * C + place, mask=mask, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    slope = came * value * (below + gate * density)
    tl.store(out + 2 * row * C + place, (came * gate * below).to(out.dtype.element_ty), mask=mask)
    tl.store(out + 2 * row * C + C + place, slope.to(out.dtype.element_ty), mask=mask)


_GATED = {"BR": 4, "BC": 256}
"""Rows and columns of a tile of gates."""


def _gates(rows: int, width: int) -> tuple[int, int]:
    return -(-rows // _GATED["BR"]), -(-width // _GATED["BC"])


def gated(both: Tensor) -> Tensor:
    """Return ``value · gelu(gate)`` [..., C] of contiguous rows [value, gate]."""
    width = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    rows = out.numel() // width
    _gate[_gates(rows, width)](both, out, rows, width, **_GATED)
    return out


def gate_gradient(gradient: Tensor, both: Tensor) -> Tensor:
    """Return the gradient of the rows that ``gated`` was given."""
    out, width = torch.empty_like(both), both.shape[-1] // 2
    rows = both.numel() // both.shape[-1]
    _gate_back[_gates(rows, width)](both, gradient, out, rows, width, **_GATED)
    return out

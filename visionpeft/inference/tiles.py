"""Large pictures through an autoencoder in tiles that overlap, where the device has no room for the whole.

Tiles are encoded or decoded one by one and faded into each other where they overlap, over a quarter of their side. The
result is near what the whole gives, not equal to it: normalisation and attention see a tile, not the picture. The
larger the tiles the nearer, so the largest that fit are taken.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from visionpeft.compute.residence import free_memory

SIDES = (1024, 768, 512, 384, 256)
"""Sides of tiles that are tried, in pixels."""

_MAPS = {"encode": 6, "decode": 10}
"""Feature maps of the picture's size and the first layer's width that a pass may need at a time: a block's input, the
normalised one, its activation and the convolution's output, twice as wide where decoding begins at that size; and as
much again as the convolution itself may ask for."""

Way = Literal["encode", "decode"]


@contextmanager
def tiled(vae: Any, way: Way, size: tuple[int, int], side: int | None = None) -> Generator[int | None]:
    """Have the autoencoder work in tiles while the context lasts, where the picture needs it; yield their side.

    Args:
        vae: an AutoencoderKL, where it computes.
        way: what it is about to do.
        size: height and width of the picture, in pixels.
        side: of the tiles, in pixels; None: whole if there is room, else the largest tiles that there is room for.
    """
    side = side or tile_side(vae, way, size, _room(vae, way, size))
    if side is None:
        yield None
        return
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = [getattr(vae, name) for name in names]
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    try:
        for name, value in zip(names, (True, side // scale * scale, side // scale), strict=True):
            setattr(vae, name, value)
        yield side
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(vae, name, value)


def tile_side(vae: Any, way: Way, size: tuple[int, int], room: int | None) -> int | None:
    """Return the side of the tiles that a picture needs, in pixels; None where it can stay whole.

    Args:
        vae: an AutoencoderKL.
        way: what it is to do.
        size: height and width of the picture, in pixels.
        room: free bytes; None: there is no telling, and pictures stay whole.
    """
    if room is None or needed(vae, way, *size) <= room:
        return None
    fitting = [side for side in SIDES if needed(vae, way, min(side, size[0]), min(side, size[1])) <= room]
    return (fitting or SIDES[-1:])[0]


def _room(vae: Any, way: Way, size: tuple[int, int]) -> int | None:
    """The device's free bytes; where they do not suffice at once, with what torch held in reserve given back."""
    room = free_memory(vae.device)
    if room is None or needed(vae, way, *size) <= room:
        return room
    torch.cuda.empty_cache()
    return free_memory(vae.device)


def needed(vae: Any, way: Way, height: int, width: int) -> int:
    """Return about how many bytes a picture of so many pixels needs on its way through the autoencoder."""
    kind: torch.dtype = vae.dtype
    return _MAPS[way] * int(vae.config.block_out_channels[0]) * height * width * kind.itemsize

"""MixUp (Zhang et al. 2017, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), on the device.

Each sample is mixed with its neighbour: the first with the second, the third with the fourth, and the other way round.
The order of an epoch is random, so neighbours are partners as random as any; and as neighbours are never on two
processes (micro-batches are runs of an even number of the step's slots), and all draws belong to slots, the result does
not depend on the number of processes, nor on how a step is shared out into micro-batches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from pydantic import Field
from scipy.special import betaincinv
from torch import Tensor

from visionpeft.data.classification.settings import Settings
from visionpeft.errors import ConfigError

_KNOTS = 8192


class MixConfig(Settings):
    """Training on blends of two pictures and of their targets."""

    mixup: float = Field(
        default=0.0, ge=0, le=100, description="MixUp: alpha of the share's Beta(alpha, alpha); 0: off. 0.2 is usual."
    )
    cutmix: float = Field(
        default=0.0, ge=0, le=100, description="CutMix: alpha of the share's Beta(alpha, alpha); 0: off. 1 is usual."
    )
    probability: float = Field(default=1.0, ge=0, le=1, description="How many of the samples are mixed.")
    cutmix_share: float = Field(default=0.5, ge=0, le=1, description="With both on: how many of these by CutMix.")

    @property
    def active(self) -> bool:
        """Whether anything is mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


class Draws(Protocol):
    """Random numbers of a micro-batch's samples, such as ``training.rng.StepRng``."""

    def uniform(self, stream: str) -> Tensor:
        """Return draws [n] from [0, 1), float32 on the device; the same again for the same stream."""
        ...


def mixed(pixels: Tensor, targets: Tensor, config: MixConfig, rng: Draws) -> tuple[Tensor, Tensor]:
    """Return pictures and targets of a micro-batch, each mixed with its neighbour's; without host synchronisation.

    ``x' = w x + (1 - w) x_neighbour`` and ``t' = λ t + (1 - λ) t_neighbour``: for MixUp w = λ ~ Beta(α, α) everywhere;
    for CutMix w is 0 in a box of the area (1 - λ) about a uniform centre and 1 elsewhere, and λ is then the mean of w,
    as boxes are cut off at the edges.

    Args:
        pixels: [N, 3, H, W], N even.
        targets: [N, C] float, one-hot or any probabilities.
        config: what is mixed, and how much.
        rng: draws of these N samples.

    Raises:
        ConfigError: N is odd.
    """
    if not config.active:
        return pixels, targets
    count, _, height, width = pixels.shape
    if count % 2:
        raise ConfigError(f"MixUp and CutMix mix neighbours, and the batch size {count} is odd: make it even.")
    weight = _weights(config, rng, height, width).to(pixels.dtype)
    share = weight.float().mean(dim=(1, 2, 3)).to(targets.dtype)[:, None]
    return torch.lerp(_neighbours(pixels), pixels, weight), torch.lerp(_neighbours(targets), targets, share)


def _neighbours(values: Tensor) -> Tensor:
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _weights(config: MixConfig, rng: Draws, height: int, width: int) -> Tensor:
    """[N, 1, H, W] float32, how much of a picture stays at each place."""
    draw = rng.uniform("mix-share")
    everywhere = torch.ones(len(draw), 1, height, width, device=draw.device)
    parts: list[Tensor] = []
    if config.mixup:
        parts.append(everywhere * beta_draws(draw, config.mixup)[:, None, None, None])
    if config.cutmix:
        parts.append(1 - _boxes(1 - beta_draws(draw, config.cutmix), rng, height, width))
    weight = parts[0]
    if len(parts) == 2:
        weight = torch.where((rng.uniform("mix-kind") < config.cutmix_share)[:, None, None, None], parts[1], parts[0])
    return torch.where((rng.uniform("mix-whether") < config.probability)[:, None, None, None], weight, everywhere)


def _boxes(area: Tensor, rng: Draws, height: int, width: int) -> Tensor:
    """[N, 1, H, W], 1 inside of boxes of these shares of the picture, in its shape, about uniform centres."""
    side = area.clamp(min=0).sqrt()[:, None]
    inside = [
        _within(rng.uniform(stream)[:, None], side, length)
        for stream, length in (("mix-down", height), ("mix-across", width))
    ]
    return (inside[0][:, :, None] & inside[1][:, None, :]).float()[:, None]


def _within(center: Tensor, side: Tensor, length: int) -> Tensor:
    """[N, length] bool, which pixels have their middle within ``side / 2`` of ``center``, both shares of the length."""
    middles = (torch.arange(length, device=center.device) + 0.5) / length
    return (middles - center).abs() < side / 2


def beta_draws(uniform: Tensor, alpha: float) -> Tensor:
    """Return draws from Beta(alpha, alpha) made of uniform ones, of the same shape, float32 on the same device.

    By the inverse of the distribution function from a table of 8193 entries between which it is linear: no rejection,
    so one uniform draw makes one, and the number of operations is fixed. Exact to 1e-3 but for the outermost 1/8192 of
    the draws at either end.

    Args:
        uniform: draws from [0, 1).
        alpha: above 0.
    """
    table = _quantiles(alpha, uniform.device)
    place = uniform.float() * _KNOTS
    below = place.long().clamp(max=_KNOTS - 1)
    return torch.lerp(table[below], table[below + 1], place - below)


@lru_cache(maxsize=8)
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    """The quantiles 0, 1/8192 … 1 of Beta(alpha, alpha); sent to the device once."""
    shares = np.asarray(betaincinv(alpha, alpha, np.linspace(0.0, 1.0, _KNOTS + 1)), dtype=np.float32)
    return torch.from_numpy(shares).to(device)

"""Optimizers: one table, settings with their ranges, learning rates by component."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn
from torch.optim import Optimizer

from visionpeft.errors import ConfigError, MissingExtraError, did_you_mean
from visionpeft.training.schedules import unknown

Groups = list[dict[str, Any]]


class OptimizerConfig(BaseModel):
    """Which optimizer, and its settings; a plain name stands for the name with the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "adamw"
    """adamw, adamw8bit, adafactor or sgd."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay; for sgd the L2 penalty."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moments of adamw and adamw8bit, each in [0, 1)."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of adamw and adamw8bit."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd."""

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", name, OPTIMIZERS))
        return name

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas lie in [0, 1), got {betas}")
        return betas


def _adamw(groups: Groups, config: OptimizerConfig, device: torch.device) -> Optimizer:
    """AdamW (arXiv:1711.05101), in one kernel where the device has it."""
    cuda = device.type == "cuda"
    fused = cuda or device.type == "cpu"
    return torch.optim.AdamW(
        groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused, capturable=cuda
    )


def _adamw8bit(groups: Groups, config: OptimizerConfig, device: torch.device) -> Optimizer:
    """AdamW with its moments in 8 bits (arXiv:2110.02861)."""
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise MissingExtraError(
            "optimizer 'adamw8bit' needs the package bitsandbytes: pip install bitsandbytes, or use 'adamw'."
        ) from missing
    if device.type != "cuda":
        raise ConfigError(f"optimizer 'adamw8bit' needs a CUDA device, this run is on '{device.type}'. Use 'adamw'.")
    return AdamW8bit(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


def _adafactor(groups: Groups, config: OptimizerConfig, device: torch.device) -> Optimizer:
    """Adafactor (arXiv:1804.04235): second moments as row and column sums."""
    del device
    return torch.optim.Adafactor(groups, weight_decay=config.weight_decay)


def _sgd(groups: Groups, config: OptimizerConfig, device: torch.device) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    fused = device.type in ("cuda", "cpu")
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused)
    for group in groups if config.momentum else ():
        for parameter in group["params"]:
            # torch begins with whatever lies in memory where the first step is skipped, as a loss scale may skip it
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig, torch.device], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "sgd": _sgd,
}
"""Name -> maker of the optimizer for groups {"params", "lr"} on a device."""

ELEMENTWISE = ("adamw", "sgd")
"""Optimizers that move each weight by itself: many parameters may lie in one. Their step keeps no number on the host,
so that it can be recorded as a CUDA graph."""


def recordable(config: OptimizerConfig, device: torch.device) -> bool:
    """Return whether the optimizer's steps can be recorded; its learning rates then are scalars on the device."""
    return device.type == "cuda" and config.name in ELEMENTWISE


def rates_of(learning_rate: float | Mapping[str, float], groups: Sequence[str]) -> dict[str, float]:
    """Return the learning rate of each group of parameters.

    A table names groups ("unet") or the dotted beginnings of their names ("model" for "model.layers.3"), of which the
    longest holds.

    Raises:
        ConfigError: a rate is given for what is not trained, or none for a group that is.
    """
    if not isinstance(learning_rate, Mapping):
        return dict.fromkeys(groups, learning_rate)
    naming = {group: [name for name in learning_rate if f"{group}.".startswith(f"{name}.")] for group in groups}
    for name in learning_rate:
        if not any(name in names for names in naming.values()):
            raise ConfigError(
                f"train.learning_rate: '{name}' is not trained.{did_you_mean(name, groups)}"
                f" Trained are: {', '.join(groups)}."
            )
    missing = [group for group, names in naming.items() if not names]
    if missing:
        raise ConfigError(f"train.learning_rate: no rate for {', '.join(missing)}. Add one, or give a single number.")
    return {group: learning_rate[max(names, key=len)] for group, names in naming.items()}


def build_optimizer(
    config: OptimizerConfig, trainable: Mapping[str, Sequence[nn.Parameter]], rates: Mapping[str, float]
) -> Optimizer:
    """Return the optimizer with one group of parameters each; all parameters are on one device.

    Raises:
        MissingExtraError: the optimizer's package is not installed.
        ConfigError: the optimizer does not work on the device.
    """
    groups: Groups = [{"params": list(parameters), "lr": rates[name]} for name, parameters in trainable.items()]
    device = groups[0]["params"][0].device
    if recordable(config, device):
        groups = [group | {"lr": torch.tensor(group["lr"], device=device)} for group in groups]
    return OPTIMIZERS[config.name](groups, config, device)

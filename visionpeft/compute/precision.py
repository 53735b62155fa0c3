"""Which precision a step computes in; the trained weights are float32 whatever it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from visionpeft.errors import ConfigError

PrecisionName = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a step.

    Attributes:
        name: ``fp32``, ``fp16`` or ``bf16``.
        dtype: what a step computes in; None is float32.
        scaled: whether the loss needs scaling, since float16 gradients underflow.
    """

    name: str
    dtype: torch.dtype | None
    scaled: bool

    def autocast(self, device: torch.device, *, needed: bool = True) -> AbstractContextManager[object]:
        """Return the context in which a loss is computed on ``device``.

        Args:
            device: of the loss.
            needed: whether weights or inputs are in another type than ``dtype``. Where a frozen base is in it already,
                autocast would only cost what its looking costs.
        """
        return torch.autocast(device.type, dtype=self.dtype, enabled=needed and self.dtype is not None)


FP32 = Precision("fp32", None, scaled=False)
FP16 = Precision("fp16", torch.float16, scaled=True)
BF16 = Precision("bf16", torch.bfloat16, scaled=False)


def precision_of(setting: PrecisionName, device: torch.device) -> Precision:
    """Return the precision that a setting means on a device.

    ``auto`` is bfloat16 on a CUDA device that computes in it, float16 on an older one, float32 elsewhere.

    Raises:
        ConfigError: float16 asked for on a device without fast float16.
    """
    if setting == "auto":
        return _automatic(device)
    if setting == "fp16" and device.type != "cuda":
        raise ConfigError(f"train.precision: 'fp16' needs a CUDA device, this run is on '{device.type}'. Use 'auto'.")
    return {"fp32": FP32, "fp16": FP16, "bf16": BF16}[setting]


def _automatic(device: torch.device) -> Precision:
    if device.type != "cuda":
        return FP32
    return BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else FP16

"""Which number format a device computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visionpeft.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "fp16", "bf16"]


def choose_precision(wanted: Precision, device: torch.device | str) -> Literal["fp32", "fp16", "bf16"]:
    """Settle ``auto`` for a device: bf16 on CUDA from compute capability 8.0, fp16 on older, fp32 elsewhere.

    Raises:
        ConfigError: fp16 was asked for on a CPU, which has no fast fp16 and no gradient scaling.
    """
    import torch

    kind = torch.device(device).type
    if wanted == "fp16" and kind == "cpu":
        raise ConfigError("train.precision: fp16 needs a GPU; use auto, fp32 or bf16 on this CPU.")
    if wanted != "auto":
        return wanted
    if kind != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(torch.device(device)) >= (8, 0) else "fp16"


def autocast_dtype(precision: Literal["fp32", "fp16", "bf16"]) -> torch.dtype | None:
    """The dtype that matrix products run in under autocast; None for plain float32."""
    import torch

    return {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]

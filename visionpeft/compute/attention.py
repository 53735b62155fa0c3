"""Attention backends, tried by running each on a small case: what imports does not always compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_SHAPE_BHSD = (2, 2, 64, 64)
"""Batch, heads, sequence and width of the case: sizes that every kernel takes."""

_TOLERANCE = {"fp32": 1e-4, "half": 2e-2}

SDPA = {
    "sdpa math": "MATH",
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa efficient": "EFFICIENT_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
}
"""torch's own backends: our name -> the name in torch.nn.attention.SDPBackend."""

FORCED = {"flash": "sdpa flash", "cudnn": "sdpa cudnn", "efficient": "sdpa efficient", "xformers": "xformers"}
"""What ``train.attention`` may force -> its name among the backends."""


@dataclass(frozen=True)
class Backend:
    """One backend on one device.

    Attributes:
        works: it ran forward and backward, and gave the reference's values.
        why: where it does not work, the reason in a line.
    """

    name: str
    device: str
    works: bool
    why: str = ""


def probe(device: torch.device) -> list[Backend]:
    """Run every backend on a device, forward and backward, against float64 attention written out."""
    rows = [try_backend(name, device, _sdpa(kind)) for name, kind in SDPA.items()]
    return [*rows, try_backend("xformers", device, xformers_attend)]


def try_backend(name: str, device: torch.device, attend: Attend) -> Backend:
    """Run one attention function, [batch, heads, sequence, width] each, and say whether it works on the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            error = _error_of(attend, device)
        except ModuleNotFoundError as missing:
            return Backend(name, str(device), works=False, why=f"{missing.name} is not installed")
        except Exception as problem:  # noqa: BLE001 - whatever stops a backend is the answer
            return Backend(name, str(device), works=False, why=_reason(problem, caught))
    return Backend(name, str(device), works=error is None, why=error or "")


def _error_of(attend: Attend, device: torch.device) -> str | None:
    """Run one backend forward and backward; return what is wrong with its values, or None."""
    import torch

    dtype = torch.float32 if device.type != "cuda" else torch.float16
    generator = torch.Generator().manual_seed(0)
    cases = [torch.randn(_SHAPE_BHSD, generator=generator, dtype=torch.float64) for _ in range(3)]
    inputs = [case.to(device, dtype).requires_grad_() for case in cases]
    output = attend(*inputs)
    output.float().sum().backward()
    q, k, v = cases
    expected = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
    off = float((output.detach().cpu().double() - expected).abs().max())
    if any(x.grad is None or not bool(x.grad.isfinite().all()) for x in inputs):
        return "its backward pass gives no finite gradient"
    limit = _TOLERANCE["fp32" if dtype is torch.float32 else "half"]
    return None if off <= limit else f"its values are off by {off:.1e}"


def _sdpa(kind: str) -> Attend:
    """``scaled_dot_product_attention`` held to one backend; tensors are [batch, heads, sequence, width]."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        with sdpa_kernel(getattr(SDPBackend, kind)):
            return scaled_dot_product_attention(q, k, v)

    return attend


def xformers_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the attention of xformers, which wants [batch, sequence, heads, width]; here heads come before."""
    from importlib import import_module

    ops = import_module("xformers.ops")
    swapped = [x.transpose(1, 2) for x in (q, k, v)]
    return ops.memory_efficient_attention(*swapped).transpose(1, 2)


def _reason(problem: Exception, caught: list[warnings.WarningMessage]) -> str:
    """Why a backend refused, in a line; for want of a kernel torch gives the reason as a warning, if at all."""
    text = str(problem)
    if "No viable backend" in text or "No available kernel" in text:
        said = [str(w.message).split(" (Triggered")[0] for w in caught if "not used because" not in str(w.message)]
        text = said[0] if said else "no kernel for this device"
    return " ".join(text.split())[:160] or type(problem).__name__

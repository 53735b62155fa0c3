"""What this machine's device reaches, measured in a few seconds and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.compute.devices import devices
from visionpeft.compute.planning.ledger import Kind, Ledger
from visionpeft.compute.planning.rates import Point, Rates
from visionpeft.safefile import write_atomically

_SPENT = 0.06
"""Seconds for a point on a CPU."""
_REPEATS = 20


class _Case(NamedTuple):
    """Something small that is one kernel of a class, or nearly."""

    kind: Kind
    work: Callable[[], Any]


def calibrated(device: torch.device, folder: Path, *, anew: bool = False) -> Rates:
    """Return what a device reaches: as it was measured before, or measured now and kept.

    Args:
        device: of this machine; "cuda" or "cpu".
        folder: where figures are kept, one file a device and version of torch.
        anew: measure even where figures are kept.
    """
    product = product_of(device)
    words = f"{product} {torch.__version__} {torch.get_num_threads() if device.type == 'cpu' else ''}"
    path = folder / ("".join(c if c.isalnum() else "_" for c in words.strip()) + ".json")
    if not anew and (kept := _read(path)) is not None:
        return kept
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext():
        rates = measured(device, product)  # what is recorded may not depend on the default stream
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [rates.model_dump_json(indent=1).encode()])
    return rates


def product_of(device: torch.device) -> str:
    """The maker's name of a device."""
    names = {found.name.partition(":")[0]: found.product for found in reversed(devices())}
    return names.get(device.type, device.type)


def _read(path: Path) -> Rates | None:
    """Figures that were kept; None where there are none that can be read."""
    try:
        return Rates.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def measured(device: torch.device, product: str) -> Rates:
    """Measure what a device reaches."""
    curves: dict[str, tuple[Point, ...]] = {}
    types = (torch.float32, torch.bfloat16 if _has_bf16(device) else torch.float16)
    for dtype in types if device.type == "cuda" else types[:1]:
        found: dict[Kind, list[Point]] = {}
        for case in _cases(device, dtype):
            found.setdefault(case.kind, []).append(_point(case, device))
        end = "" if dtype == torch.float32 else " half"
        curves |= {f"{kind}{end}": _rising(points) for kind, points in found.items()}
    plain = Rates(device=product, measured=True, curves=curves, launch=0.0, apart=device.type == "cuda")
    transfer = _transfer(device) if device.type == "cuda" else None
    return plain.model_copy(update={"launch": _launch(device, plain), "transfer": transfer})


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _rising(points: list[Point]) -> tuple[Point, ...]:
    """Points in the order of their work; more work takes no less time, whatever was measured."""
    rising: list[Point] = []
    for work, seconds in sorted(points):
        rising.append((work, max(seconds, rising[-1][1] if rising else 0.0)))
    return tuple(rising)


def _cases(device: torch.device, dtype: torch.dtype) -> Iterator[_Case]:
    gpu = device.type == "cuda"

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    for side in (128, 512, 2048, 6144) if gpu else (32, 128, 384, 768):
        yield _product(made(side, side), made(side, side))
    for channels, side in ((64, 32), (320, 64), (640, 128)) if gpu else ((16, 16), (32, 32), (96, 48)):
        yield from _convolution(made(1, channels, side, side), made(channels, channels, 3, 3))
    for tokens in (64, 1024, 4096) if gpu else (32, 128, 512):
        yield from _attention(*(made(1, 8, tokens, 64) for _ in range(3)))
    for count in (2**12, 2**18, 2**22, 2**26) if gpu else (2**10, 2**14, 2**18, 2**22):
        yield from _moving(made(count // 256, 256))


def _product(a: Tensor, b: Tensor) -> _Case:
    return _Case("matmul", lambda: a @ b)


def _convolution(x: Tensor, weight: Tensor) -> Iterator[_Case]:
    yield _Case("conv", lambda: F.conv2d(x, weight, padding=1))
    arguments: Any = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
    gradient = F.conv2d(x, weight, padding=1)
    yield _Case("conv back", lambda: torch.ops.aten.convolution_backward(gradient, x, weight, *arguments))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Iterator[_Case]:
    yield _Case("attention", lambda: F.scaled_dot_product_attention(q, k, v))
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]

    def back() -> Any:
        return torch.autograd.grad(out, inputs, ones, retain_graph=True)

    out = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])
    ones = torch.ones_like(out)
    yield _Case("attention back", back)


def _moving(x: Tensor) -> Iterator[_Case]:
    weight = torch.ones(x.shape[1], device=x.device, dtype=x.dtype)
    yield _Case("moving", lambda: x + x)
    yield _Case("special", lambda: F.gelu(x))
    yield _Case("norm", lambda: F.layer_norm(x, x.shape[1:], weight, weight))


def _point(case: _Case, device: torch.device) -> Point:
    """Work and seconds of a case."""
    with Ledger(device.type) as ledger:
        case.work()
    kernels = [kernel for kernel in ledger.trace.kernels if kernel.kind == case.kind]
    counts = case.kind in ("moving", "norm", "special")
    work = sum(kernel.moved if counts else kernel.flops for kernel in kernels)
    return float(max(1, work)), _on_gpu(case.work) if device.type == "cuda" else _on_cpu(case.work)


def _on_cpu(work: Callable[[], Any], spent: float = _SPENT) -> float:
    """Seconds of work that waits for itself; the lower quartile, since other programs only ever add to it."""
    work()
    times: list[float] = []
    begun = perf_counter()
    while len(times) < 3 or (perf_counter() - begun < spent and len(times) < 500):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return sorted(times)[len(times) // 4]


def _on_gpu(work: Callable[[], Any]) -> float:
    """Seconds of work on a GPU by itself: it is recorded, and many of it replayed in a row."""
    for _ in range(3):
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(_REPEATS):
            work()
    times: list[float] = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / _REPEATS)
    return median(times)


def _launch(device: torch.device, rates: Rates) -> float:
    """Seconds that Python takes for a kernel: of a small network's step, what its kernels do not take."""
    layers = [module for _ in range(6) for module in (nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU())]
    network, x = nn.Sequential(*layers).to(device), torch.randn(8, 64, device=device)

    def work() -> None:
        network(x).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with Ledger(device.type) as ledger:
        work()
    kernels = ledger.trace.kernels
    seconds = _on_cpu(work, 3 * _SPENT)
    busy = 0.0 if rates.apart else sum(map(rates.seconds, kernels))
    return max(0.0, seconds - busy) / len(kernels)


def _transfer(device: torch.device) -> float:
    """Bytes a second from pinned main memory."""
    source = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)
    place = torch.empty_like(source, device=device)
    times: list[float] = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = perf_counter()
        place.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return source.numel() / median(times)

"""Which kernel attends: what a run's attention looks like, how long each kernel takes for it here, and the choice."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from visionpeft.compute.attention import FORCED, SDPA, Backend, probe, xformers_attend
from visionpeft.compute.recorded import Recorder
from visionpeft.errors import ConfigError, MissingExtraError, VisionPeftError
from visionpeft.safefile import write_atomically

if TYPE_CHECKING:
    from visionpeft.compute.attention import Attend

OWN = "sdpa"
"""torch's own choice."""
_RUNS = 10
_CLEARLY = 0.97
"""A kernel is preferred to torch's own choice where it takes at most this share of its time."""


@dataclass(frozen=True)
class Shape:
    """One call of attention.

    Attributes:
        dtype: as "bfloat16".
        mask: "" for none, or the mask's type and shape, as "bool 1x1x77x77".
    """

    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    dtype: str
    mask: str = ""
    causal: bool = False

    def tensors(self, device: torch.device) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Return queries, keys and values [batch, heads, tokens, width] that ask for gradients, and what else it takes.

        They lie in memory as models have them, the tokens before the heads.
        """
        dtype = getattr(torch, self.dtype)
        sides = (self.queries, self.keys, self.keys)
        made = [torch.randn(self.batch, side, self.heads, self.width, device=device, dtype=dtype) for side in sides]
        mask = None
        if self.mask:
            kind, _, sizes = self.mask.partition(" ")
            mask = torch.ones([int(size) for size in sizes.split("x")], device=device, dtype=getattr(torch, kind))
        given = tuple(x.transpose(1, 2).detach().requires_grad_() for x in made)
        return given, {"attn_mask": mask, "is_causal": self.causal}


class Listening(TorchFunctionMode):
    """While it is entered, notes every call of ``scaled_dot_product_attention``.

    Attributes:
        calls: how often each shape was attended to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Shape] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and note it where it is attention."""
        if func is F.scaled_dot_product_attention:
            self.calls[_shape_of(*args, **(kwargs or {}))] += 1
        return func(*args, **(kwargs or {}))


def _shape_of(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **more: Any,
) -> Shape:  # fmt: skip
    del value, dropout_p, more
    *outer, heads, queries, width = (1, *query.shape) if query.ndim < 4 else query.shape
    mask = "" if attn_mask is None else f"{_name(attn_mask.dtype)} {'x'.join(map(str, attn_mask.shape))}"
    return Shape(math.prod(outer), heads, queries, key.shape[-2], width, _name(query.dtype), mask, is_causal)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Instead(TorchFunctionMode):
    """While it is entered, another function attends wherever there is neither mask nor dropout.

    Args:
        attend: takes queries, keys and values [batch, heads, tokens, width], and ``scale``.
    """

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self._attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, attention by the other function."""
        kwargs = kwargs or {}
        plain = (
            len(args) == 3
            and args[0].ndim == 4
            and not any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
        )
        if func is not F.scaled_dot_product_attention or not plain or kwargs.get("attn_mask") is not None:
            return func(*args, **kwargs)
        query, key, value = args
        wanted = kwargs.get("scale")
        usual = query.shape[-1] ** -0.5
        return self._attend(query if wanted is None else query * (wanted / usual), key, value)


def attending(name: str) -> AbstractContextManager[Any]:
    """Return the context in which a kernel attends wherever it can, and torch's other ones elsewhere.

    It must be open around backward passes too: what is recomputed there has to be as it was.

    Args:
        name: "sdpa", or a key of ``FORCED``.
    """
    if name == OWN:
        return nullcontext()
    if name == "xformers":
        return Instead(xformers_attend)
    first = _kernel(name)
    usual = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION)
    return sdpa_kernel([first, *(kernel for kernel in usual if kernel is not first)], set_priority=True)


def _kernel(name: str) -> SDPBackend:
    return getattr(SDPBackend, SDPA[FORCED[name]])


def working(device: torch.device) -> dict[str, Backend]:
    """Return what probing says of the kernels that can be forced, by name."""
    found = {backend.name: backend for backend in probe(device)}
    return {name: found[row] for name, row in FORCED.items()}


def require_working(name: str, device: torch.device) -> None:
    """Refuse a kernel that does not work on a device.

    Raises:
        MissingExtraError: xformers is not installed.
        ConfigError: says why, and which kernels work.
    """
    found = working(device)
    if found[name].works:
        return
    able = [other for other, backend in found.items() if backend.works]
    what = f"train.attention: {name} does not work on {device.type}: {found[name].why.rstrip('.')}."
    remedy = f"What works here: {', '.join(['auto', OWN, *able])}."
    if name == "xformers" and found[name].why.endswith("is not installed"):
        raise MissingExtraError(f"{what} pip install 'visionpeft[xformers]', or take another. {remedy}")
    raise ConfigError(f"{what} {remedy}")


def refused(name: str, calls: Mapping[Shape, int], device: torch.device) -> int:
    """Return how many of the calls a kernel cannot serve, for their mask or width; torch's other kernels do."""
    if name == "xformers":
        return sum(count for shape, count in calls.items() if shape.mask or shape.causal)
    alone = [milliseconds(shape, device, partial(sdpa_kernel, _kernel(name)), runs=1) for shape in calls]
    return sum(count for count, spent in zip(calls.values(), alone, strict=True) if spent is None)


def milliseconds(
    shape: Shape, device: torch.device, context: Callable[[], AbstractContextManager[Any]], runs: int = _RUNS
) -> float | None:
    """Return the time of one forward and backward pass, recorded where that can be; None: it cannot be done so."""
    try:
        (query, key, value), more = shape.tensors(device)
        given = query, key, value

        def work() -> None:
            out = F.scaled_dot_product_attention(query, key, value, **more)
            torch.autograd.grad(out, given, out.detach())

        with context():
            return _timed(work, device, runs)
    except (RuntimeError, VisionPeftError):
        return None


def _timed(work: Callable[[], None], device: torch.device, runs: int) -> float:
    if device.type != "cuda":
        work()
        begun = time.perf_counter()
        for _ in range(runs):
            work()
        return 1000 * (time.perf_counter() - begun) / runs
    recording = Recorder(device).recording(work)
    for _ in range(3):  # as it is twice, then recorded
        recording.run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(runs):
        recording.run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / runs


@dataclass(frozen=True)
class Choice:
    """The kernel that attends.

    Attributes:
        name: "sdpa" for torch's own choice, or the kernel.
        times: milliseconds of a step's attention by name, the fastest first.
        calls: how many there are in a step.
    """

    name: str
    times: Mapping[str, float]
    calls: int

    @property
    def line(self) -> str:
        """What to say of it."""
        told = {OWN: "torch's own choice"}
        others = ", ".join(f"{told.get(name, name)} {spent:.2f}" for name, spent in self.times.items())
        return f"attention: {told.get(self.name, self.name)}; {self.calls} calls of a step take (ms): {others}."


def choose(calls: Mapping[Shape, int], device: torch.device, folder: Path | None) -> Choice:
    """Return the kernel that is fastest for these calls on this device, by trying; what was tried once is remembered.

    Args:
        calls: of one micro-batch.
        device: where they are made.
        folder: where times are kept, by device, torch's version and shape; None keeps none.
    """
    names = [OWN, *(name for name, backend in working(device).items() if backend.works)]
    sums = dict.fromkeys(names, 0.0)
    for shape, count in calls.items():
        for name, spent in _times(shape, names, device, folder).items():
            sums[name] += count * spent
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the tries took is the run's again
    able = {name: spent for name, spent in sorted(sums.items(), key=lambda pair: pair[1]) if math.isfinite(spent)}
    best = next(iter(able), OWN)
    name = best if OWN not in able or able[best] < _CLEARLY * able[OWN] else OWN
    return Choice(name, able, sum(calls.values()))


def _times(shape: Shape, names: list[str], device: torch.device, folder: Path | None) -> dict[str, float]:
    """Milliseconds by name, ∞ for what cannot be done; read from the folder where all are there."""
    about = {"device": _product(device), "torch": torch.__version__, "shape": asdict(shape)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = None if folder is None else folder / f"{key}.json"
    known = _kept(path)
    for name in names:
        if name not in known:
            spent = milliseconds(shape, device, partial(attending, name))
            known[name] = math.inf if spent is None else spent
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**about, "milliseconds": {n: None if math.isinf(t) else t for n, t in known.items()}})
        write_atomically(path, [text.encode()])
    return {name: known[name] for name in names}


def _kept(path: Path | None) -> dict[str, float]:
    """What a file says; nothing where it is not there or not as it was written."""
    if path is None or not path.is_file() or path.stat().st_size > 10_000:
        return {}
    try:
        rows = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8"))["milliseconds"])
        return {str(name): math.inf if spent is None else float(spent) for name, spent in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _product(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

"""How long kernels take on a device: a curve for each class, seconds over work, measured or reckoned from facts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log

from pydantic import BaseModel, ConfigDict

from visionpeft.compute.planning.hardware import Gpu
from visionpeft.compute.planning.ledger import Kernel, Kind

Point = tuple[float, float]
"""Work (operations, or bytes) and the seconds that it takes."""

_FLOOR = 3e-6
"""The shortest time from one kernel's begin to the next one's in a recorded step, in seconds."""
_SHARES: Mapping[Kind, float] = {
    "matmul": 0.7, "conv": 0.5, "conv back": 0.5, "attention": 0.55, "attention back": 0.4, "norm": 0.7,
    "special": 0.75, "moving": 0.8,
}  # fmt: skip
"""What share of a device's peak a large kernel reaches, where nothing is measured."""
_LAUNCH = 2.5e-5
_PARTS = {"native_group_norm": 2, "native_group_norm_backward": 4, "native_layer_norm_backward": 3,
          "convolution_backward": 2, "attention_backward": 3}  # fmt: skip
"""Operations that are several kernels on a GPU."""


class Rates(BaseModel):
    """What a device reaches."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str
    """Its maker's name for it."""
    measured: bool
    """Whether it was measured, rather than reckoned."""
    curves: dict[str, tuple[Point, ...]]
    """Class, and " half" behind it in half precision -> points in the order of their work."""
    launch: float
    """Seconds that Python takes for a kernel, forward and backward."""
    apart: bool
    """Whether kernels run beside Python, as on a GPU, so that only the slower of the two counts."""
    transfer: float | None = None
    """Bytes a second from main memory."""

    def seconds(self, kernel: Kernel) -> float:
        """Return how long a kernel takes."""
        moving = self._at("moving", kernel.half, kernel.moved)
        if kernel.kind in ("moving", "norm", "special"):
            return self._at(kernel.kind, kernel.half, kernel.moved)
        return max(moving, self._at(kernel.kind, kernel.half, kernel.flops))

    def step(self, kernels: Iterable[Kernel], *, recorded: bool = False) -> float:
        """Return how long a step of these kernels takes."""
        listed = list(kernels)
        busy = sum(map(self.seconds, listed))
        if not self.apart:
            return busy + self.launch * len(listed)
        extra = sum(_PARTS.get(kernel.name, 1) - 1 for kernel in listed) * _FLOOR
        return busy + extra if recorded else max(busy + extra, self.launch * len(listed))

    def _at(self, kind: str, half: bool, work: float) -> float:
        points = self.curves.get(f"{kind} half" if half else kind) or self.curves[kind]
        return interpolated(points, max(1.0, work))


def interpolated(points: Sequence[Point], work: float) -> float:
    """Return the seconds of some work: between two points on the line of logarithms; beyond the last in proportion.

    Below the first point the time is that of the first: a kernel takes some, whatever it does.
    """
    place = bisect_right(points, work, key=lambda point: point[0])
    if place == 0:
        return points[0][1]
    before = points[place - 1]
    if place == len(points):
        return before[1] * work / before[0]
    after = points[place]
    share = log(work / before[0]) / log(after[0] / before[0])
    return exp(log(before[1]) * (1 - share) + log(after[1]) * share)


def reckoned(gpu: Gpu) -> Rates:
    """Return what a GPU should reach by its facts: a floor a kernel, and a share of its peak for large ones."""
    curves: dict[str, tuple[Point, ...]] = {}
    for kind, share in _SHARES.items():
        for half in (False, True):
            peak = gpu.bandwidth if kind in ("norm", "special", "moving") else gpu.half if half else gpu.single
            curves[f"{kind} half" if half else kind] = _saturating(share * peak)
    return Rates(
        device=gpu.name, measured=False, curves=curves, launch=_LAUNCH, apart=True, transfer=0.8 * gpu.transfer
    )


def _saturating(rate: float) -> tuple[Point, ...]:
    """A floor and a rate together, as a curve."""
    works = [_FLOOR * rate * factor for factor in (0.1, 1, 3, 10, 100, 1000)]
    return tuple((work, _FLOOR + work / rate) for work in works)


def spent(rates: Rates, kernels: Iterable[Kernel]) -> dict[str, float]:
    """Return the seconds of kernels by class."""
    found: dict[str, float] = {}
    for kernel in kernels:
        found[kernel.kind] = found.get(kernel.kind, 0.0) + rates.seconds(kernel)
    return found

"""From a rehearsal to figures: how much memory at most in which phase, and how long a step takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from visionpeft.compute.planning.allocator import Allocator, Memory
from visionpeft.compute.planning.hardware import CONTEXT
from visionpeft.compute.planning.ledger import Event, Kernel, Trace
from visionpeft.compute.planning.rates import Rates

_MIB = 1024**2
STEP = ("forward", "backward", "update")
"""The stages of a step."""
_BEFORE = ("preparing", "batch", "first")
_WORKSPACE = 32 * _MIB
"""What the library of products takes on a GPU."""
_AHEAD = 2
"""Blocks whose weights are on the device while they are streamed: the one in use, and the next."""
_RECORDED = 64 * 1024
"""What the driver holds for a recorded kernel, about."""


@dataclass(frozen=True)
class Prediction:
    """What a run should take.

    Attributes:
        phases: the most memory of each phase, by name: "preparing", "training", and others.
        weights: bytes of frozen weights on the device while it trains.
        state: bytes of trained weights, gradients, optimizer state and average.
        kept: bytes that the forward pass keeps for the backward pass.
        passing: the most bytes that a step takes beside all these.
        context: bytes of the GPU that torch does not count: the CUDA context and recorded kernels.
        seconds: of a step of the whole batch.
        times: of which by class of kernel, and "launching", "streaming", where they count.
        main_memory: bytes that must be pinned in main memory.
    """

    phases: Mapping[str, Memory]
    weights: int
    state: int
    kept: int
    passing: int
    context: int
    seconds: float
    times: Mapping[str, float]
    main_memory: int

    @property
    def peak(self) -> Memory:
        """The most of all phases."""
        worst = self.phases.values()
        return Memory(max(m.allocated for m in worst), max(m.reserved for m in worst))

    @property
    def worst(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda name: self.phases[name].reserved)


@dataclass(frozen=True)
class Kept:
    """What stays where while training.

    Attributes:
        weights: entry -> bytes on the device.
        blocks: entries of each block's weights, in the order of use.
        stream: share of the blocks whose weights wait in main memory.
        offload: share of the blocks whose activations do.
    """

    weights: Mapping[int, int]
    blocks: Sequence[frozenset[int]]
    stream: float = 0.0
    offload: float = 0.0

    @property
    def away(self) -> frozenset[int]:
        """Entries of weights that wait in main memory."""
        count = round(self.stream * len(self.blocks))
        return frozenset[int]().union(*self.blocks[:count])

    @property
    def window(self) -> int:
        """Bytes on the device through which these pass."""
        sizes = sorted(sum(self.weights[n] for n in block & self.away) for block in self.blocks)
        return sum(sizes[-_AHEAD:])

    @property
    def passed(self) -> int:
        """Bytes that pass through it in a direction."""
        return sum(self.weights[number] for number in self.away)


def placed(events: Iterable[Event], kept: Kept) -> list[Event]:
    """Return events with each weight as large as it is kept, and without those that are away."""
    away = kept.away
    sized = (
        event._replace(size=kept.weights.get(event.storage, event.size)) if event.size else event for event in events
    )
    return [event for event in sized if event.storage not in away]


def phases_of(trace: Trace, kept: Kept, *, recorded: bool, cuda: bool) -> dict[str, Memory]:
    """Return the most memory of each phase.

    A recorded step has a pool of its own: what it allocates while it runs cannot be taken from what was freed before.

    Args:
        trace: of a rehearsal.
        kept: where weights are.
        recorded: whether steps are recorded.
        cuda: whether libraries take workspaces, as on a GPU.
    """
    events = placed(trace.events, kept)
    allocator, worst = Allocator(), dict[str, Memory]()
    extra = (_WORKSPACE if cuda else 0) + kept.window
    pool = _pool(events) if recorded else 0
    for number, size, stage in events:
        phase = "training" if stage in STEP else "preparing" if stage in _BEFORE else stage
        inside = recorded and stage in STEP
        if size and not inside:
            allocator.take(number, size)
        elif not size and allocator.holds(number):
            allocator.give(number)
        held = extra if stage in _BEFORE else extra + pool
        segments = allocator.used_segments() if inside else allocator.reserved
        worst[phase] = _larger(worst.get(phase), allocator.allocated + held, segments + held)
    return worst


def _larger(before: Memory | None, allocated: int, reserved: int) -> Memory:
    if before is None:
        return Memory(allocated, reserved)
    return Memory(max(before.allocated, allocated), max(before.reserved, reserved))


def _pool(events: Sequence[Event]) -> int:
    """Bytes that a recorded step's own pool holds."""
    allocator = Allocator()
    for number, size, stage in events:
        if stage in STEP and size:
            allocator.take(number, size)
        elif stage in STEP and allocator.holds(number):
            allocator.give(number)
    return allocator.reserved


def kept_and_passing(events: Iterable[Event]) -> tuple[int, int, int]:
    """Return bytes before the step, what the forward pass leaves beside them, and the most beside both."""
    sizes: dict[int, int] = {}
    live = before = left = most = 0
    begun = False
    for number, size, stage in events:
        if size:
            sizes[number] = size
        live += size or -sizes.pop(number, 0)
        begun = begun or stage == "forward"
        if not begun:
            before = live
        elif stage == "forward":
            left = live
        if stage in STEP:
            most = max(most, live)
    return before, left - before, most - left


def seconds_of(
    trace: Trace, kept: Kept, rates: Rates, *, recorded: bool, accumulation: int
) -> tuple[float, dict[str, float]]:
    """Return the seconds of a whole step, and of which by class of kernel."""
    micro = [*trace.at("forward"), *trace.at("backward")]
    end = trace.at("update")
    once = rates.step(micro, recorded=recorded)
    if rates.transfer and kept.away:
        once = max(once, 2 * kept.passed / rates.transfer)
    times: dict[str, float] = {}
    for kernel in [*micro * accumulation, *end]:
        times[kernel.kind] = times.get(kernel.kind, 0.0) + rates.seconds(kernel)
    total = once * accumulation + rates.step(end, recorded=recorded)
    times["launching and waiting"] = max(0.0, total - sum(times.values()))
    return total, times


def predicted(trace: Trace, kept: Kept, rates: Rates, *, recorded: bool, accumulation: int, inputs: int) -> Prediction:
    """Return what a run should take, from its rehearsal.

    Args:
        trace: of the rehearsal, a step of one micro-batch.
        kept: where weights are.
        rates: of the device.
        recorded: whether steps are recorded.
        accumulation: micro-batches of a step.
        inputs: bytes of a micro-batch.
    """
    cuda = rates.apart
    events = placed(trace.events, kept)
    before, left, passing = kept_and_passing(events)
    weights = sum(size for number, size in kept.weights.items() if number not in kept.away)
    seconds, times = seconds_of(trace, kept, rates, recorded=recorded, accumulation=accumulation)
    kernels: list[Kernel] = [k for k in trace.kernels if k.stage in STEP]
    context = (CONTEXT + (_RECORDED * len(kernels) if recorded else 0)) if cuda else 0
    phases = phases_of(trace, kept, recorded=recorded, cuda=cuda)
    state = max(0, before - weights - inputs)
    return Prediction(phases, weights, state, left, passing, context, seconds, times, kept.passed)

"""``train.vram``: a run is fitted to an amount of a GPU's memory before it begins, and held to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from visionpeft.progress import Progress

if TYPE_CHECKING:
    from visionpeft.config import RunConfig


def fitted(config: RunConfig, progress: Progress) -> RunConfig:
    """Return a run's settings as they fit its ``train.vram``, and hold this process to it; as they are without one.

    On a CPU nothing is planned or capped, which is told.

    Raises:
        ResourceError: nothing fits; the message says what needs least.
    """
    vram = config.train.vram
    if vram is None:
        return config
    from visionpeft.compute.devices import best_device

    if best_device() != "cuda":
        if vram != "auto":
            progress.say(f"train.vram={vram}: no GPU is here, so nothing is capped and the settings stay as they are.")
        return config
    return _fitted_here(config, progress)


def _fitted_here(config: RunConfig, progress: Progress) -> RunConfig:
    from visionpeft.compute.planning.amounts import bytes_of
    from visionpeft.delivery.machine import cap, here
    from visionpeft.delivery.plan import changed_run, make_plan
    from visionpeft.errors import ResourceError

    vram = config.train.vram
    machine = here(None if vram in (None, "auto") else bytes_of(vram), progress=progress)
    # a run that goes on must have the optimizer that it began with
    plan = make_plan(config, machine, progress, optimizer=config.resume == "never")
    if plan.chosen is None:
        raise ResourceError(f"train.vram={vram}: {plan.verdict} Free memory, or ask less: a smaller picture or base.")
    progress.say(f"within {vram if vram != 'auto' else 'what is free'}: {plan.verdict}")
    if vram != "auto":
        cap(bytes_of(vram or 0))
    return changed_run(config, plan.chosen.changes)


def advice(config: RunConfig) -> str:
    """What fits this machine's GPU by the plan, for the message that memory ran out; "" where there is no plan."""
    from visionpeft.compute.devices import best_device
    from visionpeft.delivery.machine import here
    from visionpeft.delivery.plan import make_plan
    from visionpeft.errors import VisionPeftError

    if best_device() != "cuda":
        return ""
    try:
        return f" By the plan: {make_plan(config, here(None), optimizer=config.resume == 'never').verdict}"
    except VisionPeftError:
        return ""

"""Which device a plan is for: the one that is here, measured, or another one by its facts."""

from __future__ import annotations

from dataclasses import replace

import torch

from visionpeft.compute.devices import best_device
from visionpeft.compute.memory import device_memory
from visionpeft.compute.planning.amounts import bytes_of
from visionpeft.compute.planning.calibrate import calibrated, product_of
from visionpeft.compute.planning.hardware import CONTEXT, Gpu, gpu_for, gpu_named, known_gpu
from visionpeft.compute.planning.rates import Rates, reckoned
from visionpeft.data.cache import user_cache
from visionpeft.delivery.plan import Machine
from visionpeft.errors import ConfigError
from visionpeft.progress import SILENT, Progress


def machine_for(vram: str | None, gpu: str | None, *, measure: bool = False, progress: Progress = SILENT) -> Machine:
    """Return the machine that a plan is for.

    Args:
        vram: amount of memory; None is what the device has, or has free where it is here.
        gpu: name of one; "cpu" is this CPU; None is the one that is here, or one with about so much memory.
        measure: measure what the device here reaches, even where that is known.
        progress: is told that it is measured.

    Raises:
        ConfigError: no such amount or GPU; nothing says for which to plan; or one that is not here is to be measured.
    """
    memory = None if vram is None else bytes_of(vram)
    if gpu is not None and gpu.lower() == "cpu":
        return Machine(_measured("cpu", measure, progress), memory, None)
    if gpu is None and best_device() == "cuda":
        return here(memory, measure=measure, progress=progress)
    if gpu is None and memory is None:
        raise ConfigError(
            "there is no GPU here: say for which to plan, with --vram 8GB, --gpu 'RTX 3060', or --gpu cpu."
        )
    facts = gpu_for(memory or 0) if gpu is None else gpu_named(gpu)
    if measure:
        raise ConfigError(f"{facts.name} is not in this machine: leave --measure away, or plan on it.")
    return Machine(reckoned(facts), memory or facts.memory, facts)


def here(memory: int | None, *, measure: bool = False, progress: Progress = SILENT) -> Machine:
    """Return this machine's GPU, measured, with an amount of memory or what is free of it."""
    device = torch.device("cuda", torch.cuda.current_device())
    product = product_of(torch.device("cuda"))
    properties = torch.cuda.get_device_properties(device)
    plain = Gpu(product, 1e14, 1e13, 1e12, properties.total_memory, 2.5e10, bf16=properties.major >= 8)
    facts = replace(known_gpu(product) or plain, name=product)
    rates = _measured("cuda", measure, progress)
    room = device_memory(device)
    free = room.free + torch.cuda.memory_reserved(device) + CONTEXT if room else properties.total_memory
    return Machine(rates, memory or free, facts)


def cap(memory: int) -> None:
    """Hold this process to an amount of its GPU's memory, the CUDA context, which torch does not count, included."""
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(1, memory - CONTEXT) / total), device)


def _measured(kind: str, measure: bool, progress: Progress) -> Rates:
    # one line, since some seconds without a word look like a fault
    progress.say(f"what this {kind.upper()} reaches is measured where it is not known yet: some seconds.")
    return calibrated(torch.device(kind), user_cache("rates"), anew=measure)

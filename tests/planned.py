"""Steps of real tasks on the CPU, measured, beside the same steps rehearsed without values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from visionpeft.compute.planning.pretend import Pretend
from visionpeft.compute.precision import FP32
from visionpeft.config import RunConfig
from visionpeft.delivery.shapes import shapes_of
from visionpeft.progress import SILENT
from visionpeft.run import JOBS
from visionpeft.training.batches import BatchPlan
from visionpeft.training.rehearsal import Rehearsal, rehearse
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Context
from visionpeft.training.trainer import Trainer


def rehearsed(config: RunConfig) -> Rehearsal:
    """The run without values, as if on this CPU in float32."""
    with tempfile.TemporaryDirectory() as folder, Pretend(torch.device("cpu")) as pretend:
        shapes = shapes_of(config, Path(folder))
        return rehearse(shapes.task, shapes.models, config.train, FP32, pretend, Path(folder), shapes.asides)


def real_step(config: RunConfig, folder: Path) -> tuple[Callable[[], None], Trainer]:
    """A step of the run itself on this CPU, whose batch is there, and what it trains; one step is made already."""
    accelerator: Any = None
    task = JOBS[config.task].build(config, SILENT)
    context = Context(
        accelerator, torch.device("cpu"), None, 0, 1, config.train.seed, folder, SILENT, config.train.thrift
    )
    task.prepare(context)
    for component in task.components.values():
        component.train()
    plan = BatchPlan(config.train.seed, task.samples(), config.train.batch_size, 1, 0, 1)
    trainer = Trainer(task.trainable(), config.train, FP32, 1, task.rates())
    positions = plan.micro(0)[0]
    slots = torch.tensor([position.slot for position in positions])
    batch = task.batch(positions)

    def step() -> None:
        trainer.begin(0)
        out = task.loss(batch, StepRng(plan.seed, 0, slots, plan.global_batch, torch.device("cpu")))
        trainer.backward(out)
        del out
        trainer.exchange()
        trainer.update()

    step()
    return step, trainer


def most_memory(work: Callable[[], None]) -> int:
    """The most bytes that torch's allocator gave out while ``work`` was done, beside those before; by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    results: Any = found.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most

#!/usr/bin/env python3
"""Time and memory of training steps: every work in every setting, beside the same step as a plain peft loop.

    python -m scripts.bench.train_step --work runs/steps [--minutes 8] [--part SDXL] [--tiny]
    python -m scripts.bench.train_step --work runs/steps --levers      what each lever gains, one by one
    python -m scripts.bench.train_step --work runs/steps --losses      200 steps, launched, recorded and compiled

Real architectures with random weights, LoRA rank 16 on attention, bfloat16, AdamW, gradients clipped, latents cached.
Each cell is measured in a process of its own, steps timed by the GPU, which nothing waits for, as in a run: median and
90th percentile after the first steps, peaks of memory from the first step on, seconds until steps are as fast as they
get (compiling and recording), and the share of a step in which the host made its batch. Cells that no time is left for
are named. The table is printed last and written beside the figures, with what it was measured on.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from scripts.bench.train_losses import compare_losses
from scripts.bench.train_works import DEVICE, WORKS, Times, by_engine
from visionpeft.errors import ConfigError
from visionpeft.training.settings import TrainConfig

ROOT = Path(__file__).parents[2]
WARM = 8
PLAIN = "plain peft loop, eager"
SD1, SD4, SDXL = list(WORKS)[:3]
VIT, DETR, WHISPER = list(WORKS)[3:]
RECOMPUTED = {"gradient_checkpointing": True}


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        work: key of WORKS.
        setting: what the line is called.
        train: settings that differ from the program's own; None is the plain loop.
        steps: how many are timed.
        without: levers that are not pulled.
        recompute: whether the plain loop recomputes.
    """

    work: str
    setting: str
    train: Mapping[str, Any] | None
    steps: int = 60
    without: tuple[str, ...] = ()
    recompute: bool = False

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return f"{self.work} | {self.setting}"


def table_cells() -> list[Cell]:
    """The table's lines, the most wanted first."""
    compiled, kept = {"compile": "on"}, {"memory": {"base": "fp8"}}
    return [
        Cell(SD1, PLAIN, None, 20), Cell(SD1, "recorded", {}), Cell(SD1, "recorded, compiled", compiled),
        Cell(SDXL, f"{PLAIN}, checkpointing", None, 8, recompute=True),
        Cell(SDXL, "recorded, checkpointing", RECOMPUTED, 24),
        Cell(SDXL, "recorded, compiled, checkpointing", {**RECOMPUTED, **compiled}, 24),
        Cell(SDXL, "recorded", {}, 24), Cell(SDXL, "recorded, compiled", compiled, 24),
        Cell(SD4, "recorded", {}, 40), Cell(SD4, "recorded, compiled", compiled, 40),
        Cell(VIT, PLAIN, None, 20), Cell(VIT, "recorded", {}),
        Cell(WHISPER, "recorded", {}, 40), Cell(DETR, "recorded", {}, 40),
        Cell(SDXL, "recorded, checkpointing, fp8 base", {**RECOMPUTED, **kept}, 24),
        Cell(SDXL, "recorded, checkpointing, nf4 base", {**RECOMPUTED, "memory": {"base": "nf4"}}, 24),
        Cell(SDXL, "checkpointing, streamed", {**RECOMPUTED, "memory": {"stream": 1.0}}, 12),
    ]  # fmt: skip


def lever_cells() -> list[Cell]:
    """SD1.5 with one lever less each time, then with none of them."""
    off = [Cell(SD1, f"recorded, without {lever}", {}, without=(lever,)) for lever in LEVERS]
    return [
        Cell(SD1, PLAIN, None, 20), Cell(SD1, "recorded, all levers", {}), *off,
        Cell(SD1, "recorded, none of these levers", {}, without=tuple(LEVERS)),
        Cell(SD1, "all levers, not recorded", {"record": "off"}, 20),
        Cell(SD1, "recorded, all levers, compiled", {"compile": "on"}),
    ]  # fmt: skip


# ---------------------------------------------------------------------- levers


def _with_autocast(task: Any) -> list[Any]:
    return [patch.object(type(task), "autocast", new=True)]


def _cast_in_each_layer(task: Any) -> list[Any]:
    from visionpeft.adapters.layers import Branch

    del task
    return [patch.object(Branch, "takes_copies", new=False)]


def _nothing(model: Any) -> None:
    """What a lever that is not pulled does to a model."""
    del model


def _channels_first(task: Any) -> list[Any]:
    from visionpeft.tasks import placing

    del task
    return [patch.object(placing, "channels_last", _nothing)]


def _apart(task: Any) -> list[Any]:
    from visionpeft.tasks import placing

    del task
    return [patch.object(placing, "join_attention", _nothing)]


def _not_fused(task: Any) -> list[Any]:
    from visionpeft.tasks import placing

    del task
    return [patch.object(placing, "fuse_unet", _nothing)]


def _parameter_by_parameter(task: Any) -> list[Any]:
    from visionpeft.training import trainer

    del task
    return [patch.object(trainer, "ELEMENTWISE", ())]


LEVERS: dict[str, Callable[[Any], list[Any]]] = {
    "a half-precision base out of autocast": _with_autocast,
    "one cast of the adapters a step": _cast_in_each_layer,
    "channels last": _channels_first,
    "q, k and v in one product": _apart,
    "norms, activations and gates fused": _not_fused,
    "one flat parameter": _parameter_by_parameter,
}
"""Name -> what puts things back to how they were without it, for the measured process alone."""


@contextmanager
def without(levers: Sequence[str], task: Any) -> Generator[None]:
    """Train without these levers within the context."""
    with ExitStack() as stack:
        for lever in levers:
            for change in LEVERS[lever](task):
                stack.enter_context(change)
        yield


# ---------------------------------------------------------------------- one cell


@dataclass
class Figures:
    """What was measured of a cell; milliseconds, GiB, seconds, a share."""

    median: float
    p90: float
    allocated: float
    reserved: float
    ready: float
    waiting: float
    rate: float
    said: list[str] = field(default_factory=list[str])


def settings(cell: Cell, steps: int) -> TrainConfig:
    """The run's settings."""
    return TrainConfig.model_validate(
        {"steps": steps, "batch_size": WORKS[cell.work].batch, "precision": "bf16", "log_every": 10_000,
         "checkpoint_every": 0, "compile": "off", **(cell.train or {})}
    )  # fmt: skip


def measure(cell: Cell, folder: Path, *, tiny: bool) -> Figures:
    """Run a cell in this process."""
    work = WORKS[cell.work]
    config = settings(cell, 4 if tiny else WARM + cell.steps + 1)
    if cell.train is None:
        if work.plain is None:
            raise SystemExit(f"{cell.work} has no plain loop")
        return figures(work.plain(config, folder, tiny, cell.recompute), work.batch, tiny=tiny)
    task = work.task(folder, tiny)
    if tiny:
        config = config.model_copy(update={"batch_size": 1})
    with without(cell.without, task):
        times, _ = by_engine(task, config, folder / "run")
    return figures(times, config.batch_size, tiny=tiny)


def figures(times: Times, batch: int, *, tiny: bool) -> Figures:
    """Return the figures of what was timed."""
    warm = 1 if tiny else WARM
    began = times.began
    steps = np.diff(began)[warm:]
    median, cuda = float(np.median(steps)), DEVICE.type == "cuda"
    return Figures(
        median=1000 * median, p90=1000 * float(np.quantile(steps, 0.9)),
        allocated=torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        reserved=torch.cuda.max_memory_reserved() / 2**30 if cuda else 0.0,
        ready=max(0.0, began[warm] - began[0] - warm * median),
        waiting=float(np.sum(times.waited[-len(steps):]) / np.sum(steps)), rate=batch / median, said=times.said,
    )  # fmt: skip


# ---------------------------------------------------------------------- the table

HEAD = "| work | setting | step, ms | p90 | times plain | allocated, GiB | reserved | samples/s | ready, s | waiting |"


def lines_of(cells: Sequence[Cell], found: Mapping[str, Figures | str]) -> list[str]:
    """The table's lines."""
    lines = [HEAD, "|" + "---|" * 10]
    for cell in cells:
        one = found.get(cell.name, "no time was left")
        if isinstance(one, str):
            lines.append(f"| {cell.work} | {cell.setting} | {one} |" + " |" * 7)
            continue
        plain = _plain_beside(cell, cells, found)
        ratio = f"{plain.median / one.median:.1f}" if plain else "-"
        lines.append(
            f"| {cell.work} | {cell.setting} | {one.median:.1f} | {one.p90:.1f} | {ratio} | {one.allocated:.2f}"
            f" | {one.reserved:.2f} | {one.rate:.1f} | {one.ready:.1f} | {100 * one.waiting:.1f} % |"
        )
        lines += [f"| | *{line}* |" + " |" * 8 for line in one.said if "record" in line or "compiled" in line]
    return lines


def _plain_beside(cell: Cell, cells: Sequence[Cell], found: Mapping[str, Figures | str]) -> Figures | None:
    recomputes = cell.recompute or bool((cell.train or {}).get("gradient_checkpointing"))
    for other in cells:
        one = found.get(other.name)
        alike = other.work == cell.work and other.train is None and other.recompute == recomputes
        if alike and isinstance(one, Figures):
            return one
    return None


def about() -> str:
    """What it was measured on."""
    card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU ({platform.machine()})"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    command = " ".join(["python -m scripts.bench.train_step", *sys.argv[1:]])
    return f"{card}; {versions}; commit {commit.stdout.strip() or 'unknown'}; `{command}`"


def run_all(cells: Sequence[Cell], options: argparse.Namespace) -> dict[str, Figures | str]:
    """Measure cells one after another, each in its own process, as long as time is left."""
    found: dict[str, Figures | str] = {}
    end = time.monotonic() + 60 * options.minutes
    for number, cell in enumerate(cells):
        left = end - time.monotonic()
        if left < 10:
            break
        command = [sys.executable, "-m", "scripts.bench.train_step", "--one", cell.name, "--work",
                   str(options.work / str(number)), *(["--tiny"] if options.tiny else [])]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            break
        found[cell.name] = _told(done)
        one = found[cell.name]
        shown = one if isinstance(one, str) else f"{one.median:.1f} ms, {one.reserved:.2f} GiB"
        print(f"{cell.name}: {shown}", flush=True)
    return found


def _told(done: subprocess.CompletedProcess[str]) -> Figures | str:
    if done.returncode == 0:
        return Figures(**json.loads(done.stdout.splitlines()[-1]))
    print(done.stderr[-1500:], file=sys.stderr)
    return f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:100]}"


def one_cell(options: argparse.Namespace) -> None:
    """Measure the cell that is asked for and print its figures as the last line."""
    cell = next(cell for cell in [*table_cells(), *lever_cells()] if cell.name == options.one)
    try:
        print(json.dumps(vars(measure(cell, options.work, tiny=options.tiny))))
    except ConfigError as reason:
        raise SystemExit(f"not here: {reason}") from None


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.train_step", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no further cell after so long")
    parser.add_argument("--part", default="", help="only cells that have this in their name")
    parser.add_argument("--levers", action="store_true", help="each lever's gain instead of the table")
    parser.add_argument("--losses", action="store_true", help="200 steps launched, recorded and compiled instead")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, to see that everything works")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; print and write the table."""
    options = arguments(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        one_cell(options)
        return 0
    if options.losses:
        print("\n".join(compare_losses(options.work, tiny=options.tiny)))
        return 0
    cells = [cell for cell in (lever_cells() if options.levers else table_cells()) if options.part in cell.name]
    found = run_all(cells, options)
    table = [about(), "", *lines_of(cells, found)]
    name = "levers" if options.levers else "steps"
    (options.work / f"{name}.json").write_text(
        json.dumps({key: one if isinstance(one, str) else vars(one) for key, one in found.items()}, indent=1)
    )
    (options.work / f"{name}.md").write_text("\n".join(table) + "\n")
    print("\n" + "\n".join(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

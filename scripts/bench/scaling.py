#!/usr/bin/env python3
"""Pictures per second and efficiency of 1, 2, 4 and 8 processes, one a GPU: SD 1.5 and SDXL, random weights.

    python scripts/bench/scaling.py [--processes 1 2 4 8] [--families sd1 sdxl] [--write FILE.md] [--tiny]

Every row is trained by this program's engine under torchrun: LoRA of rank 16 on the UNet's attention, AdamW, recorded
steps, bfloat16, SD 1.5 at 512 px with 4 pictures a process and SDXL at 1024 px with 1. Latents are random and stay on
the device, so that nothing is read. Pictures per second are the median over the log's lines after the first steps;
efficiency is that of N processes as a share of N times one. "exchange" is one all-reduce of the gradients' buffer by
itself: what overlapping it with the backward pass could win at most. Numbers of processes for which there are no GPUs
are left out; without any, --tiny measures small UNets over gloo, which shows that it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.cuda import nccl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.full_size import build_unet, text_widths, unet_config  # noqa: E402
from visionpeft.adapters.archive import Adapter  # noqa: E402
from visionpeft.adapters.manager import AdapterManager  # noqa: E402
from visionpeft.adapters.spec import LoraSpec  # noqa: E402
from visionpeft.compute.tensors import moved  # noqa: E402
from visionpeft.models.stable_diffusion import SD1, SDXL  # noqa: E402
from visionpeft.progress import SilentProgress  # noqa: E402
from visionpeft.tasks.loss import add_noise, squared_errors  # noqa: E402
from visionpeft.training.engine import fit  # noqa: E402
from visionpeft.training.rng import StepRng  # noqa: E402
from visionpeft.training.settings import TrainConfig  # noqa: E402
from visionpeft.training.task import Context, StepOutput  # noqa: E402

FAMILIES = {"sd1": (SD1, 4, "SD 1.5, 512 px, batch 4"), "sdxl": (SDXL, 1, "SDXL, 1024 px, batch 1")}
BARS = {2: 0.95, 4: 0.93, 8: 0.90}
SAMPLES, WORDS, EVERY, WARM = 64, 77, 10, 3
"""Latents on the device; tokens of a prompt; steps between lines of the log, of which the first so many are left out"""


@dataclass(frozen=True)
class Measured:
    """What one number of processes came to."""

    family: str
    processes: int
    pictures_per_second: float
    exchange_seconds: float
    exchanged_bytes: int
    peak_bytes: int


class RandomLatents:
    """A task whose samples are random latents with one random prompt; the UNet's attention learns."""

    name, unrecordable, autocast = "scaling", "", False
    metric: str | None = None

    def __init__(self, family: str, *, tiny: bool) -> None:
        self._family, self._tiny = family, tiny
        torch.manual_seed(0)
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        with torch.device(device):
            self.unet = build_unet(family, tiny=tiny)
        self.manager = AdapterManager({"unet": self.unet}, FAMILIES[family][0])
        self.manager.add("scaling", LoraSpec(rank=16, targets="attention"))

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The UNet."""
        return {"unet": self.unet}

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the adapter's parameters."""
        return {name: list(found) for name, found in self.manager.trainable("scaling").items()}

    def rates(self) -> Mapping[str, float]:
        """All learn alike."""
        return {}

    def prepare(self, context: Context) -> None:
        """Move the UNet over, and draw latents and what stands for a prompt."""
        self._context, device = context, context.device
        dtype = context.dtype or torch.float32
        nn.Module.to(self.unet, device=device, dtype=dtype)
        drawn = torch.Generator(device).manual_seed(1)
        side = 8 if self._tiny else unet_config(self._family, tiny=False)["sample_size"]
        width, pooled = text_widths(self._family, tiny=self._tiny)
        self._latents = torch.randn(SAMPLES, 4, side, side, device=device, generator=drawn)
        self._states = torch.randn(1, WORDS, width, device=device, generator=drawn).to(dtype)
        self._pooled = torch.randn(1, pooled, device=device, generator=drawn).to(dtype)
        self._ids = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]], device=device)
        self._kept = torch.linspace(0.999, 0.005, 1000, device=device)

    def samples(self) -> int:
        """Return how many latents there are."""
        return SAMPLES

    def batch(self, positions: Sequence[Any]) -> Tensor:
        """Return their latents."""
        return self._latents[moved(torch.tensor([one.index for one in positions]), self._context.device)]

    def loss(self, batch: Tensor, rng: StepRng) -> StepOutput:
        """Return the loss of predicting the noise."""
        noise, times, count = rng.normal(batch.shape[1:]), rng.integers(1000, "time"), len(batch)
        noisy = add_noise(batch, noise, self._kept[times])
        added = None
        if self._family == "sdxl":
            added = {"text_embeds": self._pooled.expand(count, -1), "time_ids": self._ids.expand(count, -1)}
        states = self._states.expand(count, -1, -1)
        told: Any = self.unet(noisy.to(states.dtype), times, encoder_hidden_states=states, added_cond_kwargs=added)
        total = torch.full((), float(count), device=batch.device)
        return StepOutput(squared_errors(told.sample, noise).sum(), total)

    def files(self, positions: Sequence[Any]) -> list[str]:
        """Return names for a message."""
        return [f"latent {one.index}" for one in positions]

    def evaluate(self, step: int) -> dict[str, float]:
        """There is nothing to evaluate."""
        del step
        return {}

    def preview(self, step: int) -> list[Any]:
        """There is nothing to draw."""
        del step
        return []

    def capture(self) -> Adapter:
        """Return the adapter."""
        return self.manager.capture("scaling")


class Telling(SilentProgress):
    """Prints what the engine says, so that a fallback is seen."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)


def work(family: str, steps: int, tiny: bool, output: Path) -> None:
    """Train as one process of several; the main one writes what was measured into ``output``."""
    task, batch = RandomLatents(family, tiny=tiny), FAMILIES[family][1]
    every = EVERY if steps >= (WARM + 2) * EVERY else 1
    config = TrainConfig(steps=steps, batch_size=batch, log_every=every, checkpoint_every=0)
    fit(task, config, output / "run", progress=Telling())
    elements = sum(p.numel() for group in task.trainable().values() for p in group) + 2
    exchanged = exchange_seconds(elements, next(task.unet.parameters()).device)
    if os.environ.get("RANK", "0") != "0":
        return
    lines = [json.loads(line) for line in (output / "run" / "log.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if line["kind"] == "train"][min(WARM, steps // every - 1) :]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    world = int(os.environ.get("WORLD_SIZE", "1"))
    found = Measured(family, world, statistics.median(rates), exchanged, 4 * elements, peak)
    (output / "measured.json").write_text(json.dumps(asdict(found)))


def exchange_seconds(elements: int, device: torch.device, times: int = 20) -> float:
    """Seconds of one all-reduce of so many float32, by itself; 0 for one process."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return 0.0
    buffer = torch.zeros(elements, device=device)
    spent: list[float] = []
    for _ in range(times):
        torch.distributed.barrier()
        begun = time.perf_counter()
        torch.distributed.all_reduce(buffer)
        float(buffer[0])  # waits for the device
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def measure(family: str, processes: int, steps: int, tiny: bool) -> Measured:
    """Start so many processes, and return what they came to."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [str(Path(__file__)), "--worker", folder, "--families", family, "--steps", str(steps)]
        threads = {"OMP_NUM_THREADS": "1"}  # as torchrun sets it for several, so that one has the same
        subprocess.run([*command, *(["--tiny"] if tiny else [])], check=True, cwd=ROOT, env=threads | dict(os.environ))
        return Measured(**json.loads((Path(folder) / "measured.json").read_text()))


def table(found: Sequence[Measured]) -> list[str]:
    """The lines of the table."""
    lines = [
        "| base | processes | pictures/s | efficiency | wanted | a step | exchange | of a step | gradients | peak |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        alone = next((m for m in found if m.family == one.family and m.processes == 1), None)
        step = one.processes * FAMILIES[one.family][1] / one.pictures_per_second
        share = "-" if alone is None else f"{efficiency(one, alone):.3f}"
        lines.append(
            f"| {FAMILIES[one.family][2]} | {one.processes} | {one.pictures_per_second:.2f} | {share} | "
            f"{BARS.get(one.processes, '')} | {1000 * step:.1f} ms | {1000 * one.exchange_seconds:.2f} ms | "
            f"{one.exchange_seconds / step:.1%} | {one.exchanged_bytes / 2**20:.1f} MiB | "
            f"{one.peak_bytes / 2**30:.1f} GiB |"
        )
    return lines


def efficiency(one: Measured, alone: Measured) -> float:
    """Pictures per second of N processes as a share of N times those of one."""
    return one.pictures_per_second / (one.processes * alone.pictures_per_second)


def missed(found: Sequence[Measured]) -> list[str]:
    """What is below its bar."""
    alone = {one.family: one for one in found if one.processes == 1}
    return [
        f"{one.family} on {one.processes}: {efficiency(one, alone[one.family]):.3f} of {BARS[one.processes]}"
        for one in found
        if one.processes in BARS and one.family in alone
        if efficiency(one, alone[one.family]) < BARS[one.processes]
    ]


def about() -> list[str]:
    """Where and on what it was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    gpus = torch.cuda.device_count()
    where = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else platform.processor() or platform.machine()
    library = ".".join(map(str, nccl.version())) if gpus else "none (gloo)"
    told = f"{where}, torch {torch.__version__}, NCCL {library}, commit {commit.stdout.strip() or 'unknown'}"
    return ["# Several GPUs of one host", "", f"{told}, `python {' '.join(sys.argv)}`.", ""]


def main() -> int:
    """Measure all, print the table last, and return the exit status: 1 where a bar is missed on GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    parser.add_argument("--tiny", action="store_true", help="small UNets of the same make, on any machine")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        work(asked.families[0], asked.steps, asked.tiny, asked.worker)
        if torch.distributed.is_initialized():  # its threads would outlive the interpreter, which aborts now and then
            torch.distributed.destroy_process_group()
        return 0
    gpus = torch.cuda.device_count()
    if not gpus and not asked.tiny:
        parser.error("there is no GPU: --tiny shows on a CPU that it runs")
    numbers = [number for number in asked.processes if number <= gpus or not gpus]
    found = [measure(family, number, asked.steps, asked.tiny) for family in asked.families for number in numbers]
    lines = [*about(), *table(found)]
    if asked.write:
        asked.write.write_text("\n".join(lines) + "\n")
    below = missed(found) if gpus else []
    print("\n".join([*(f"below its bar: {line}" for line in below), *lines]))
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())

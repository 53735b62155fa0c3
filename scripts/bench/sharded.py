#!/usr/bin/env python3
"""A rank-16 LoRA on a frozen transformer of 12 billion parameters that several GPUs share: memory of each, and speed.

    torchrun --nproc_per_node 2 -m scripts.bench.sharded --work runs/sharded [--batch 4] [--steps 20] [--cap 20]
                                                         [--tiny]

The model is a plain vision transformer with random bfloat16 weights: 39 layers, 5120 wide, 257 tokens a picture. No
process ever holds it whole: its weights come to be in parts, on the devices. It is trained by this program's engine
with ``train.shard: on`` and activations computed again in the backward pass; pictures and labels are noise, the same in
every step. On a GPU PyTorch is held to ``--cap`` GiB, so that a run that needs more ends. Printed are the peak that
PyTorch allocated and reserved on each device, what its driver says is in use at the end, and the median time of a step.
``--tiny`` is the same with a model of a few thousand parameters, on CPUs too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute.lean import Lean
from visionpeft.compute.memory import amount, device_memory, peak_memory
from visionpeft.compute.thrift import Thrift
from visionpeft.data.order import Position
from visionpeft.errors import ConfigError
from visionpeft.models.manage import manage
from visionpeft.progress import SilentProgress
from visionpeft.training.engine import fit
from visionpeft.training.rng import StepRng
from visionpeft.training.settings import TrainConfig
from visionpeft.training.start import open_accelerator
from visionpeft.training.task import Artifact, Context, StepOutput

WARM = 3
GIB = 2**30
LARGE = {"hidden_size": 5120, "num_hidden_layers": 39, "num_attention_heads": 40, "intermediate_size": 20480}
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True)
class Batch:
    """Noise [N, 3, 224, 224] and labels [N]."""

    pixels: Tensor
    labels: Tensor


class Telling(SilentProgress):
    """Prints what the engine says."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)


class Noise:
    """The task: a transformer without values learns noise by a LoRA on its attention.

    Args:
        shape: of the transformer.
        batch: pictures of a step on one process.
    """

    name = "noise"
    metric: str | None = None
    unrecordable = ""
    autocast = False  # the weights are in the type that is computed in

    def __init__(self, shape: Mapping[str, Any], batch: int) -> None:
        config = ViTConfig(image_size=224, patch_size=14, **shape)
        with torch.device("meta"):
            self.model: nn.Module = ViTForImageClassification(config).requires_grad_(False)
        self.count = sum(parameter.numel() for parameter in self.model.parameters())
        self._size = batch
        self.times: list[float] = []

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The transformer."""
        return {"model": self.model}

    def prepare(self, context: Context) -> None:
        """Let the transformer come to be in parts, and put the adapter on it."""
        if context.sharding is None:
            raise ConfigError("this measures a shared base: start it with torchrun --nproc_per_node 2 or more.")
        shared = context.sharding.shard(self.model, torch.bfloat16, fill=_fill)
        context.progress.say(
            f"{self.count:,} parameters in {shared.blocks} blocks: {amount(shared.here)} of"
            f" {amount(shared.whole)} on each process, {amount(shared.outside)} on all"
        )
        self._manager = manage(self.model)
        self._manager.add("bench", LoraSpec(rank=16, targets="attention"))
        Lean(self.model, context.device, Thrift(recompute=1.0))
        self._device = context.device
        generator = torch.Generator().manual_seed(context.rank)
        pixels = torch.randn(self._size, 3, 224, 224, generator=generator).to(context.device, torch.bfloat16)
        self._batch = Batch(pixels, torch.arange(self._size, device=context.device) % 2)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """The adapter's parameters."""
        return self._manager.trainable("bench")

    def rates(self) -> Mapping[str, float]:
        """All learn alike."""
        return {}

    def samples(self) -> int:
        """As many as there may ever be processes' batches."""
        return 64 * self._size

    def batch(self, positions: Sequence[Position]) -> Batch:
        """The same noise in every step; notes the time, with all work before it done."""
        del positions
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return self._batch

    def loss(self, batch: Batch, rng: StepRng) -> StepOutput:
        """Cross-entropy, summed."""
        del rng
        logits = self.model(pixel_values=batch.pixels).logits.float()
        count = torch.full((), float(len(logits)), device=logits.device)
        return StepOutput(F.cross_entropy(logits, batch.labels, reduction="sum"), count)

    def files(self, positions: Sequence[Position]) -> list[str]:
        """There are none."""
        del positions
        return []

    def evaluate(self, step: int) -> dict[str, float]:
        """There is nothing to find out."""
        del step
        return {}

    def preview(self, step: int) -> Sequence[Artifact]:
        """There is nothing to see."""
        del step
        return []

    def capture(self) -> Adapter:
        """The adapter."""
        return self._manager.capture("bench")


def _fill(part: Tensor) -> None:
    """Values that let signals pass: norms and biases of 1, small noise elsewhere."""
    if part.ndim == 1:
        part.fill_(1.0)
    else:
        part.normal_(0.0, 0.02)


def measured(task: Noise) -> dict[str, Any]:
    """What one process has used and how long its steps took."""
    steps = [after - before for before, after in zip(task.times[WARM:], task.times[WARM + 1 :], strict=False)]
    device = next(p.device for ps in task.trainable().values() for p in ps)
    found: dict[str, Any] = {"device": str(device), "seconds": median(steps), "allocated": peak_memory(device)}
    room = device_memory(device)
    if room is not None:
        found |= {
            "name": torch.cuda.get_device_name(device),
            "reserved": torch.cuda.max_memory_reserved(device),
            "in use": room.total - room.free,
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and let the main process print and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4, help="pictures of a step on one GPU")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cap", type=float, default=20.0, help="GiB that PyTorch may reserve on a GPU")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(argv)
    task = Noise(TINY if given.tiny else LARGE, given.batch)
    config = TrainConfig(
        steps=WARM + given.steps, batch_size=given.batch, shard="on", precision="bf16", gradient_checkpointing=True,
        checkpoint_every=0, log_every=given.steps,
    )  # fmt: skip
    accelerator = open_accelerator(config, given.work)
    if accelerator.device.type == "cuda":
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, given.cap * GIB / total), accelerator.device.index)
    fit(task, config, given.work, progress=Telling(), accelerator=accelerator)
    rows = gather_object([measured(task)])
    if accelerator.is_main_process:
        tell(rows, task, config, given.work)


def tell(rows: Sequence[Mapping[str, Any]], task: Noise, config: TrainConfig, work: Path) -> None:
    """Print a line for each device, and write ``sharded.json``."""
    seconds = max(row["seconds"] for row in rows)
    for rank, row in enumerate(rows):
        more = "".join(f", {key} {amount(row[key])}" for key in ("reserved", "in use") if key in row)
        print(f"process {rank}, {row.get('name', row['device'])}: peak allocated {amount(row['allocated'])}{more}")
    pictures = config.batch_size * len(rows) / seconds
    print(f"{task.count:,} parameters: {1 / seconds:.3f} steps a second, {pictures:.2f} pictures a second")
    told = {"parameters": task.count, "batch": config.batch_size, "torch": torch.__version__, "processes": list(rows)}
    (work / "sharded.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()

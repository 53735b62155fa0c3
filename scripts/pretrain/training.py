"""One loop for the three trainings: the whole step on the device, recorded as one CUDA graph where there is CUDA."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass
class Budget:
    """How long to train: so many steps or minutes, whichever comes first."""

    steps: int
    minutes: float = math.inf
    start: float = field(default_factory=time.monotonic)

    def progress(self, step: int) -> float:
        """The share that is used up, 1 or more when it is time to stop."""
        return max(step / self.steps, self.seconds / 60 / self.minutes)

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self.start


@dataclass(frozen=True)
class Settings:
    """How to train: AdamW, warm-up, a constant rate, a cosine descent to zero, and an average of the weights."""

    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 200
    decay_from: float = 0.6  # share of the budget after which the rate falls; 1 keeps it constant
    average: float = 0.9995  # decay of the running average of the weights
    clip: float = 1.0
    save_every: float = 120.0  # seconds
    log_every: float = 15.0  # seconds

    def rate(self, step: int, progress: float) -> float:
        """Learning rate at a step."""
        fall = max(0.0, (progress - self.decay_from) / max(1e-9, 1 - self.decay_from))
        return self.learning_rate * min(1, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * min(1, fall)))


class Trainer:
    """Trains ``module`` by ``loss``, which draws its own batch on the device and returns a scalar.

    The state (weights, average, optimizer, buffers, step, seconds) is kept in ``checkpoint`` and taken up from there
    when the file exists: steps and minutes of the budget are those of all runs together.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[], Tensor],
        settings: Settings,
        budget: Budget,
        checkpoint: Path,
        name: str,
        *,
        recorded: bool = True,
    ) -> None:
        if next(module.parameters()).is_cuda:
            module.to(memory_format=torch.channels_last)
        self.module, self.loss, self.settings, self.budget = module, loss, settings, budget
        self.checkpoint, self.name, self.step = checkpoint, name, 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        cuda = self.device.type == "cuda"
        self.recorded = cuda and recorded
        self.rate = torch.tensor(0.0, device=self.device)
        self.pull = torch.tensor(0.0, device=self.device)
        self.value = torch.tensor(0.0, device=self.device)
        self.average = [p.detach().clone() for p in self.parameters]
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=settings.betas, fused=cuda, capturable=cuda)
        if checkpoint.exists():
            self.restore()

    def run(self) -> None:
        """Train until the budget is spent, then leave the averaged weights in the module."""
        print(f"{self.name}: ready to train, {self.budget.progress(self.step):.0%}", flush=True)
        advance = self._record() if self.recorded else self._advance
        saved = logged = begun = time.monotonic()
        first = self.step
        while (progress := self.budget.progress(self.step)) < 1:
            self._set_rates(progress)
            advance()
            self.step += 1
            now = time.monotonic()
            if self.step % 20 == 0 and now - logged > self.settings.log_every:
                pace = (now - begun) / (self.step - first) * 1000
                print(
                    f"{self.name}: step {self.step}, loss {self.value.item():.4f}, {pace:.1f} ms, {progress:.0%}",
                    flush=True,
                )
                logged = now
            if now - saved > self.settings.save_every:
                self.save()
                saved = time.monotonic()
        self.save()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)

    def _set_rates(self, progress: float) -> None:
        self.rate.fill_(self.settings.rate(self.step, progress))
        # The average forgets the random beginning quickly, and remembers longer as training goes on.
        self.pull.fill_(1 - min(self.settings.average, (1 + self.step) / (10 + self.step)))

    def _advance(self) -> None:
        value = self.loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            self.value.copy_(value)
            gap = torch._foreach_sub(self.parameters, self.average)
            torch._foreach_mul_(gap, self.pull)
            torch._foreach_add_(self.average, gap)

    def _record(self) -> Callable[[], None]:
        """Run a few steps at rate zero, then record one and return its replay."""
        self.rate.zero_()
        self.pull.zero_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        moments = self._moments()
        with torch.cuda.stream(side):
            for _ in range(3):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self._set_moments(moments)
        return graph.replay

    def _moments(self) -> dict[str, Tensor]:
        state = self.optimizer.state
        return {
            f"{key}.{index}": value.detach().clone()
            for index, p in enumerate(self.parameters)
            for key, value in state.get(p, {}).items()
        }

    def _set_moments(self, moments: dict[str, Tensor]) -> None:
        """Set the optimizer's state in place; what is not given becomes zero."""
        for index, p in enumerate(self.parameters):
            for key, value in self.optimizer.state[p].items():
                stored = moments.get(f"{key}.{index}")
                value.copy_(stored) if stored is not None else value.zero_()

    def save(self) -> None:
        """Write the checkpoint beside, then put it in place."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        tensors = {f"weights.{n}": p.detach() for n, p in zip(names, self.parameters, strict=True)}
        tensors |= {f"average.{n}": a for n, a in zip(names, self.average, strict=True)}
        tensors |= {f"optimizer.{key}": value for key, value in self._moments().items()}
        tensors |= {f"buffers.{name}": value for name, value in self.module.named_buffers()}
        tensors |= {"step": torch.tensor(self.step), "seconds": torch.tensor(self.budget.seconds)}
        beside = self.checkpoint.with_suffix(".new")
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, beside)
        beside.replace(self.checkpoint)

    def restore(self) -> None:
        """Take up the state from the checkpoint."""
        stored = load_file(self.checkpoint)
        self.step = int(stored["step"])
        self.budget.start -= float(stored.get("seconds", 0.0))
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        with torch.no_grad():
            for name, p, a in zip(names, self.parameters, self.average, strict=True):
                p.copy_(stored[f"weights.{name}"])
                a.copy_(stored[f"average.{name}"])
            for name, buffer in self.module.named_buffers():
                buffer.copy_(stored.get(f"buffers.{name}", buffer))
        for key, value in stored.items():
            if key.startswith("optimizer."):
                kind, _, index = key.removeprefix("optimizer.").rpartition(".")
                p = self.parameters[int(index)]
                # The fused optimizer walks memory as it lies: moments must be laid out as their weights are.
                state = torch.empty_like(p) if value.shape == p.shape and kind != "step" else torch.empty_like(value)
                self.optimizer.state[p][kind] = state.to(p.device if kind != "step" or p.is_cuda else "cpu").copy_(
                    value
                )
        print(f"{self.name}: goes on from step {self.step}", flush=True)


def averaged(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint."""
    return {k.removeprefix("average."): v for k, v in load_file(checkpoint).items() if k.startswith("average.")}


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """The function compiled where that pays, on CUDA; as it is elsewhere."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function

"""A task small enough to be run hundreds of times: regression with low-rank factors beside frozen layers."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import LoraSpec
from visionpeft.data.order import Position
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Artifact, Context, StepOutput

IN, WIDTH, OUT = 6, 16, 3


class LowRank(nn.Module):
    """A frozen linear layer plus up @ down, with dropout before the factors."""

    def __init__(self, inputs: int, outputs: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.dropout(x) @ self.lora_A.T @ self.lora_B.T


@dataclass
class Toy:
    """Learns a random linear map; two components, as diffusion has. ``poison``: a sample whose loss is not a number."""

    dropout: float = 0.1
    noise: float = 0.1
    size: int = 23
    poison: int | None = None
    poison_gradient: bool = False
    metric: str | None = "fit"
    figures: dict[int, dict[str, float]] = field(default_factory=dict)
    name: str = "toy"
    unrecordable: str = ""
    autocast: bool = True
    deaf: bool = False
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.body, self.head = LowRank(IN, WIDTH, 2, self.dropout), LowRank(WIDTH, OUT, 2, self.dropout)
        self.inputs = torch.randn(self.size, IN, generator=generator)
        self.targets = self.inputs @ torch.randn(IN, OUT, generator=generator)
        self.seen: list[list[int]] = []
        self.looks: list[int] = []

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"body": self.body, "head": self.head}

    def prepare(self, context: Context) -> None:
        self.context = context
        for module in self.components.values():
            module.to(context.device)
        self.inputs, self.targets = self.inputs.to(context.device), self.targets.to(context.device)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return {name: [m.lora_A, m.lora_B] for name, m in self.components.items()}

    def rates(self) -> dict[str, float]:
        return self.shares

    def samples(self) -> int:
        return self.size

    def batch(self, positions: Sequence[Position]) -> tuple[Tensor, Tensor, Tensor]:
        indices = [p.index for p in positions]
        self.seen.append(indices)
        weights = torch.ones(len(indices))
        if self.poison in indices:
            weights[indices.index(self.poison)] = float("nan")
        device = self.context.device
        index = moved(torch.tensor(indices), device)
        return self.inputs[index], self.targets[index], moved(weights, device)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor], rng: StepRng) -> StepOutput:
        inputs, targets, weights = batch
        noisy = inputs + self.noise * rng.normal((IN,))
        hidden = torch.tanh(self.body(noisy))
        errors = F.mse_loss(self.head(hidden), targets, reduction="none").mean(1)
        if self.deaf:
            errors = errors.detach() + 0.0 * self.body.lora_A.sum()
        if self.poison_gradient:
            errors = errors + torch.sqrt(errors * 0.0 + 1.0 - weights.isnan().float()) - 1.0  # the slope at 0 is none
        weighted = errors if self.poison_gradient else errors * weights
        count = torch.full((), float(len(inputs)), device=inputs.device)
        return StepOutput(weighted.sum(), count, {"error": errors.mean(), "time": rng.uniform("time").mean()})

    def files(self, positions: Sequence[Position]) -> list[str]:
        return [f"sample_{p.index}.png" for p in positions]

    def evaluate(self, step: int) -> dict[str, float]:
        self.looks.append(step)
        torch.randn(100)  # careless use of the global generator must not disturb training
        if self.figures:
            return self.figures[step]
        prediction = self.head(torch.tanh(self.body(self.inputs)))
        return {"fit": -float(F.mse_loss(prediction, self.targets))}

    def preview(self, step: int) -> list[Artifact]:
        torch.rand(7)
        path = self.context.output / "previews" / f"{step:06d}.png"
        if not self.context.processes.main:
            return []
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (step % 256, 0, 0)).save(path)
        return [Artifact("grid", path, f"after {step} steps")]

    def capture(self) -> Adapter:
        tensors = {
            f"{name}.layer.{key}.weight": getattr(m, key).detach().cpu().clone()
            for name, m in self.components.items()
            for key in ("lora_A", "lora_B")
        }
        return Adapter({name: LoraSpec(rank=2, alpha=2) for name in self.components}, tensors)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def bytes_of(adapter: Adapter, folder: Path) -> bytes:
    """The bytes of an adapter's file."""
    return adapter.save(folder / "compared.safetensors").read_bytes()


def main() -> None:
    """Run in the folder that is named, going on where a former run was killed; for the benchmark of kills."""
    from visionpeft.training.engine import fit
    from visionpeft.training.settings import TrainConfig

    folder = Path(sys.argv[1])
    config = TrainConfig(steps=1000, learning_rate=0.01, ema=0.99, checkpoint_every=1, evaluate_every=3)
    fit(Toy(), config, folder, resume="auto").adapter.save(folder / "adapter.safetensors")


if __name__ == "__main__":
    main()

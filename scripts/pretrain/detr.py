"""Make the embedded detector: ``python -m scripts.pretrain.detr``.

Composes a pool of scenes with boxes on the device, trains on it, and writes the folder every two minutes and at the
end, with its figures on scenes that no training saw. A run that was stopped goes on from ``detr.state.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import RTDetrV2ForObjectDetection

from scripts.pretrain.artwork import Sprites, sprites_in
from scripts.pretrain.detr_loss import Targets, detection_loss
from scripts.pretrain.detr_measure import figures, sheet
from scripts.pretrain.detr_model import (
    MEAN,
    STD,
    configuration,
    feature_maps,
    make_detector,
    noisy_queries,
    normalize,
    predict,
    training_mode,
)
from scripts.pretrain.detr_scenes import SIDE, Scenes, crowd_scenes
from scripts.pretrain.training import Budget, Settings, Trainer

SETTINGS = Settings(
    learning_rate=4e-4, weight_decay=0.01, warmup=500, decay_from=0.0, average=0.999, clip=1.0, save_every=120.0
)
LIMIT = 12_000_000
"""Bytes of the weights."""


def disturbed(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Pictures in 0..1 and boxes of a batch, turned into one of eight positions, in other light, colours and grain."""
    pictures, boxes = scenes.pictures.float() / 255, scenes.boxes
    shape, device = (len(scenes), 1, 1, 1), pictures.device
    middle, size = boxes.split(2, dim=-1)
    mirrored = torch.rand(len(scenes), 1, 2, device=device) < 0.5
    middle = torch.where(mirrored, 1 - middle, middle)
    for axis in (0, 1):
        pictures = torch.where(mirrored[..., axis, None, None], pictures.flip(3 - axis), pictures)
    turn = torch.rand(shape, device=device) < 0.5
    pictures = torch.where(turn, pictures.transpose(2, 3), pictures)
    boxes = torch.cat([middle, size], -1)
    boxes = torch.where(turn[:, 0], torch.cat([middle.flip(-1), size.flip(-1)], -1), boxes)
    return relit(pictures), boxes


def relit(pictures: Tensor) -> Tensor:
    """Pictures in 0..1 with another brightness, contrast and tinge, some without colours, some blurred, some grainy."""
    shape, device = (len(pictures), 1, 1, 1), pictures.device

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(pictures), channels, 1, 1, device=device)

    grey = pictures.mean(1, keepdim=True)
    pictures = torch.where(torch.rand(shape, device=device) < 0.15, grey, pictures)
    blurred = nn.functional.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    pictures = torch.where(torch.rand(shape, device=device) < 0.2, blurred, pictures)
    pictures = (pictures - 0.5) * uniform(0.6, 1.2) + 0.5 + uniform(-0.15, 0.15) + uniform(-0.08, 0.08, 3)
    grain = uniform(0, 0.06) * (torch.rand(shape, device=device) < 0.5)
    return (pictures + grain * torch.randn_like(pictures)).clamp(0, 1)


class Detecting:
    """The loss: a random batch of the pool, disturbed, through the network."""

    def __init__(self, model: RTDetrV2ForObjectDetection, scenes: Scenes, batch: int) -> None:
        self.model, self.scenes, self.batch = model, scenes, batch
        self.classes = model.config.num_labels

    def draw(self) -> tuple[Tensor, Targets]:
        """A batch of disturbed pictures and what is in them."""
        rows = torch.randint(len(self.scenes), (self.batch,), device=self.scenes.boxes.device)
        chosen = self.scenes.rows(rows)
        pictures, boxes = disturbed(chosen)
        return pictures, Targets(boxes, chosen.labels)

    def __call__(self) -> Tensor:
        """One batch."""
        pictures, targets = self.draw()
        noisy = noisy_queries(targets.boxes, targets.labels, self.classes)
        return detection_loss(predict(self.model, pictures, noisy), noisy, targets)

    @torch.no_grad()
    def settle(self, batches: int) -> None:
        """Set batch norm's statistics to the mean over some batches, for the weights as they are."""
        norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for _ in range(batches):
            feature_maps(self.model, normalize(self.draw()[0]))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Shipping(Trainer):
    """Writes the folder, with the averaged weights, whenever it saves its state."""

    folder: Path
    classes: list[str]

    def save(self) -> None:
        """Write the checkpoint and the folder."""
        super().save()
        averages = {id(p): a for p, a in zip(self.parameters, self.average, strict=True)}
        weights = {name: averages.get(id(t), t) for name, t in self.module.state_dict(keep_vars=True).items()}
        pack(weights, self.classes, self.folder)


def pack(weights: dict[str, Tensor], classes: list[str], folder: Path) -> None:
    """Write configuration, weights in float16 and preprocessing; the backbone's batch norm is frozen from here on.

    Raises:
        ValueError: the weights exceed 12 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {
        name: value.detach().half().cpu().contiguous()
        for name, value in weights.items()
        if not (name.startswith("model.backbone.") and name.endswith("num_batches_tracked"))
    }
    save_file(half, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").replace(folder / "model.safetensors")
    config = configuration(classes, frozen=True).to_dict()
    config |= {"architectures": ["RTDetrV2ForObjectDetection"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    preprocessing = {
        "size": [SIDE, SIDE],
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "fit": "stretch",
        "resample": "bilinear",
    }
    (folder / "preprocessor.json").write_text(json.dumps(preprocessing, indent=1) + "\n")
    if (size := (folder / "model.safetensors").stat().st_size) > LIMIT:
        raise ValueError(f"the weights are too large: {size} bytes, more than {LIMIT}")


def new_scenes(sprites: Sprites, classes: list[str], count: int, seed: int, device: torch.device) -> dict[str, Scenes]:
    """``count`` new scenes of trained things, and as many of held-out ones."""
    everything = np.arange(len(sprites.names))
    return {
        "": crowd_scenes(sprites, everything[: sprites.trained], classes, count, seed + 1_000_000, device),
        "held_out_": crowd_scenes(sprites, everything[sprites.trained :], classes, count, seed + 2_000_000, device),
    }


def write_measure(folder: Path, scenes: dict[str, Scenes], about: dict[str, float | str], work: Path) -> None:
    """Measure the folder as it is shipped: figures, printed and in the card, and sheets of 25 scenes."""
    model = RTDetrV2ForObjectDetection.from_pretrained(folder).to(scenes[""].boxes.device).eval()
    found = about | {"scenes": len(scenes[""])}
    for name, some in scenes.items():
        found |= {name + key: round(value, 4) for key, value in figures(model, some).items()}
    print(json.dumps(found), flush=True)
    (work / "detr.json").write_text(json.dumps(found, indent=1) + "\n")
    write_card(folder, found)
    classes = [model.config.id2label[index] for index in range(model.config.num_labels)]
    for name, some in scenes.items():
        rows = torch.linspace(0, len(some) - 1, min(25, len(some)), device=some.boxes.device).round().long()
        sheet(model, some.rows(rows), classes).save(work / f"detr_{name}samples.png", optimize=True)


def write_card(folder: Path, found: dict[str, float | str]) -> None:
    """The model card with its figures."""
    text = Path(__file__).with_name("detr_card.md").read_text()
    found = found | {"bytes": f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}"}
    for name, value in found.items():
        shown = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        text = text.replace("{" + name + "}", shown)
    (folder / "README.md").write_text(text)


def train_detector(
    work: Path, out: Path, sprites: Sprites, budget: Budget, device: torch.device, *, batch: int, pool: int, seed: int,
    recorded: bool = True,
) -> int:  # fmt: skip
    """Train a detector of the sprites' class words, write its folder and return the number of steps."""
    classes = sorted(set(sprites.class_words))
    torch.manual_seed(seed)
    model = make_detector(classes).to(device)
    training_mode(model)
    scenes = crowd_scenes(sprites, np.arange(sprites.trained), classes, pool, seed, device)
    print(f"detr: {pool} scenes composed in {budget.seconds:.0f} s", flush=True)
    loss = Detecting(model, scenes, batch)
    trainer = Shipping(model, loss, SETTINGS, budget, work / "detr.state.safetensors", "detr", recorded=recorded)
    trainer.folder, trainer.classes = out, classes
    torch.manual_seed(seed + 1 + trainer.step)  # a run that goes on does not draw its first batches again
    trainer.run()
    loss.settle(max(1, min(100, pool // batch)))
    pack(model.state_dict(), classes, out)
    return trainer.step


def main() -> None:
    """Train, pack and measure."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pretrain.detr", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".pretrain"), help="folder with sprites.npz; the state's too")
    parser.add_argument("--out", type=Path, default=Path("visionpeft/assets/emoji-detr"), help="folder to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, composing scenes included")
    parser.add_argument("--steps", type=int, default=30_000, help="most steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=60_000, help="scenes to draw from; 0.3 MB each on the device")
    parser.add_argument("--count", type=int, default=500, help="new scenes to measure with, of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="do not record the step as a CUDA graph")
    options = parser.parse_args()
    budget, device = Budget(options.steps, options.minutes), torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    options.work.mkdir(parents=True, exist_ok=True)
    sprites = sprites_in(options.work)
    step = train_detector(
        options.work, options.out, sprites, budget, device, batch=options.batch, pool=options.pool,
        seed=options.seed, recorded=not options.eager,
    )  # fmt: skip
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    about = {"steps": step, "batch": options.batch, "seed": options.seed, "device": name}
    scenes = new_scenes(sprites, sorted(set(sprites.class_words)), options.count, options.seed, device)
    write_measure(options.out, scenes, about, options.work)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Time and memory of a training step of ViT-B/16 and DETR-R50 on a GPU, random weights, LoRA rank 16, bf16.

    python -m scripts.bench.vision_step --work runs/vision-step [--tiny]

ViT-B/16 (224 px, batch 32) is trained by this program's engine, its steps recorded and one by one, and by a plain loop
with peft's own model (the same layers, AdamW, clipping); all on one batch that stays on the device, so that reading
pictures counts nowhere. "with reading" is the engine again, with pictures read and varied by 16 threads. DETR-R50 is
trained by the engine at 800 x 800 and at 1333 x 1333 pixels, batch 2. Each line is measured in a process of its own:
median and 90th percentile of 60 steps after 20, each waited for, and the peak that PyTorch allocated and reserved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from visionpeft.config import config_from
from visionpeft.delivery import classification, detection
from visionpeft.progress import SilentProgress
from visionpeft.tasks.classification import Classification
from visionpeft.tasks.detection import Detection
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig

ROOT = Path(__file__).parents[2]
WARM, STEPS = 20, 60
LORA = {"method": "lora", "rank": 16, "targets": "all-linear"}


class Telling(SilentProgress):
    """Prints what the engine says, so that a fallback is seen."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)


class Timed:
    """Notes when each batch is asked for, with all work before it done."""

    def __init__(self, make: Callable[[Any], Any], *, keep: bool) -> None:
        self.make, self.keep, self.times, self.kept = make, keep, list[float](), None

    def __call__(self, positions: Any) -> Any:
        """Return a batch: always the first one where it is kept."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if self.kept is None or not self.keep:
            self.kept = self.make(positions)
        return self.kept


def vit_folder(folder: Path, *, tiny: bool) -> Path:
    """Write a ViT-B/16 with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    small = (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64} if tiny else {}
    )
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=224, patch_size=16, num_labels=2, **small)).save_pretrained(folder)
    return folder


def detr_folder(folder: Path, *, tiny: bool) -> Path:
    """Write a DETR with a ResNet-50 and random weights."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    small: dict[str, Any] = (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]} if tiny else {}
    )
    backbone = ResNetConfig(out_features=["stage4"], **small)
    config = DetrConfig(backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None)
    torch.manual_seed(0)
    DetrForObjectDetection(config).save_pretrained(folder)
    return folder


def write_pictures(folder: Path, side: int, count: int) -> None:
    """Write noise as pictures of two classes, and a box on each for COCO's json."""
    rng, images, boxes = np.random.default_rng(0), list[dict[str, Any]](), list[dict[str, Any]]()
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number}.jpg"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
        small.resize((side, side)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for place in range(8):
            corner = [int(value) for value in rng.integers(0, side // 2, 2)]
            box = [*corner, side // 4, side // 4]
            boxes.append(
                {"id": 8 * number + place + 1, "image_id": number, "category_id": 1 + place % 2, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    classes = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    whole = {"images": images, "annotations": boxes, "categories": classes}
    (folder / "boxes.json").write_text(json.dumps(whole))


def vit_task(work: Path, *, batch: int, tiny: bool) -> tuple[Classification, TrainConfig]:
    """Return the task of ViT-B/16 and its settings."""
    write_pictures(work / "pictures", 224, 2 * batch)
    config = config_from(
        {
            "task": "classify", "base": str(vit_folder(work / "vit", tiny=tiny)), "adapter": LORA,
            "data": {
                "source": {"format": "folder", "path": str(work / "pictures")}, "workers": 16,
                "split": {"fractions": [1.0, 0.0, 0.0]}, "augment": {"preset": "medical"},
            },
            "train": _train(batch), "output": str(work / "run"),
        },
        name="ViT-B/16",
    )  # fmt: skip
    return classification.build(config, Telling()), config.train


def detr_task(work: Path, *, side: int, tiny: bool) -> tuple[Detection, TrainConfig]:
    """Return the task of DETR-R50 and its settings."""
    write_pictures(work / "pictures", side, 8)
    config = config_from(
        {
            "task": "detect", "base": str(detr_folder(work / "detr", tiny=tiny)),
            "adapter": {"method": "lora", "rank": 16, "targets": ["backbone", "encoder", "decoder"]},
            "data": {
                "source": {"format": "coco", "folder": str(work / "pictures"), "annotations": "boxes.json"},
                "image_size": side, "fit": "stretch", "split": {"validation": 0.0, "test": 0.0, "leaks": "say"},
            },
            "train": _train(2), "output": str(work / "run"),
        },
        name="DETR-R50",
    )  # fmt: skip
    return detection.build(config, Telling()), config.train


def _train(batch: int) -> dict[str, Any]:
    return {
        "steps": WARM + STEPS + 1,
        "batch_size": batch,
        "log_every": 1000,
        "checkpoint_every": 0,
        "optimizer": "adamw",
    }


def by_engine(task: Any, config: TrainConfig, work: Path, *, record: bool, keep: bool) -> list[float]:
    """Return the times of an engine's steps."""
    timed = Timed(task.batch, keep=keep)
    task.batch = timed
    setting = config.model_copy(update={"record": "auto" if record else "off"})
    fit(task, setting, work / "run", progress=Telling())
    return timed.times


def by_peft(task: Classification, config: TrainConfig, work: Path) -> list[float]:
    """Return the times of a plain loop's steps, on peft's own model with the same layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import ViTForImageClassification

    names = [name.removeprefix("model.").partition(".lora_A")[0] for name in task.capture().tensors if "lora_A" in name]
    layers = [name for name, _ in task.base.model.named_modules() if name in names]
    if len(layers) != len(names):
        raise SystemExit(f"{len(names)} layers are adapted, {len(layers)} of them are known by that name")
    spec = LoraConfig(r=16, lora_alpha=16, target_modules=layers, modules_to_save=["classifier"])
    model = get_peft_model(ViTForImageClassification.from_pretrained(work / "vit"), spec).cuda().train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    pixels = torch.randn(config.batch_size, 3, 224, 224, device="cuda")
    labels = torch.arange(config.batch_size, device="cuda") % 2
    times: list[float] = []
    for _ in range(config.steps):
        torch.cuda.synchronize()
        times.append(time.perf_counter())
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(pixel_values=pixels).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return times


def _vit(work: Path, *, tiny: bool, way: str) -> list[float]:
    task, config = vit_task(work, batch=4 if tiny else 32, tiny=tiny)
    if way == "peft":
        return by_peft(task, config, work)
    return by_engine(task, config, work, record=way != "eager", keep=way != "reading")


def _detr(work: Path, *, tiny: bool, side: int) -> list[float]:
    task, config = detr_task(work, side=64 if tiny else side, tiny=tiny)
    return by_engine(task, config, work, record=True, keep=True)


LINES: dict[str, Callable[[Path, bool], Sequence[float]]] = {
    "ViT-B/16, peft in a plain loop": lambda work, tiny: _vit(work, tiny=tiny, way="peft"),
    "ViT-B/16, engine, one by one": lambda work, tiny: _vit(work, tiny=tiny, way="eager"),
    "ViT-B/16, engine, recorded": lambda work, tiny: _vit(work, tiny=tiny, way="recorded"),
    "ViT-B/16, engine, recorded, with reading": lambda work, tiny: _vit(work, tiny=tiny, way="reading"),
    "DETR-R50, 800 x 800": lambda work, tiny: _detr(work, tiny=tiny, side=800),
    "DETR-R50, 1333 x 1333": lambda work, tiny: _detr(work, tiny=tiny, side=1333),
}
"""What is measured -> the times at which its steps began."""


def measure(line: str, work: Path, *, tiny: bool) -> dict[str, float]:
    """Return the figures of a line."""
    times = LINES[line](work, tiny)
    steps = 1000 * np.diff(times)[WARM - 1 :]
    peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    return {
        "median": float(np.median(steps)), "p90": float(np.quantile(steps, 0.9)),
        "allocated": peaks[0] / 2**30, "reserved": peaks[1] / 2**30,
    }  # fmt: skip


def main() -> None:
    """Measure every line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.vision_step", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that everything works")
    parser.add_argument("--part", default="", help="only lines that have this in their name")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.work, tiny=options.tiny)))
        return
    print("| work | step, ms | p90 | allocated, GiB | reserved, GiB |\n|---|---|---|---|---|")
    for number, line in enumerate(line for line in LINES if options.part in line):
        command = [sys.executable, "-m", "scripts.bench.vision_step", *sys.argv[1:], "--one", line]
        command[command.index("--work") + 1] = str(options.work / str(number))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {line} | failed | | | |\n{done.stderr[-1500:]}")
            continue
        said = [text for text in done.stderr.splitlines() if "record" in text]
        found = json.loads(done.stdout.splitlines()[-1])
        cells = f"{found['median']:.2f} | {found['p90']:.2f} | {found['allocated']:.2f} | {found['reserved']:.2f}"
        print(f"| {line} | {cells} |", *said, sep="\n" if said else "", flush=True)


if __name__ == "__main__":
    main()

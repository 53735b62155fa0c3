#!/usr/bin/env python3
"""What a base in 8 or 4 bits costs: loss and gradients of one adapter on it, against those on the base as it is.

    python shared/tools/whisper_tiny_en.py tiny-en
    python -m scripts.bench.quantized --work runs/quantized [--whisper tiny-en] [--device cuda] [--batches 8]

Every work is a task of this program with its own data: the adapter's first values, stirred so that all of its
gradients count, no dropout, the same batches, noise and timesteps. "off" is the loss's difference as a share of it,
"cosine" is between the gradients of all trained parameters, "length" is the gradient's as a share of the other's.
bf16 is compared with float32, the codes with bf16. "weights" are those of the coded layers, in bf16 and in the code.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from visionpeft.compute.precision import BF16, FP32, Precision
from visionpeft.config import config_from
from visionpeft.delivery import classification, detection, dreambooth, speech
from visionpeft.demo import classify as classify_demo
from visionpeft.demo import detect as detect_demo
from visionpeft.demo import transcribe as transcribe_demo
from visionpeft.demo.scenes import write_boxes, write_classes
from visionpeft.models.base import ASSETS
from visionpeft.progress import SilentProgress
from visionpeft.tasks.base_error import Answer, answer, compared
from visionpeft.training.task import Context, Task

CODES = ("fp8", "int8", "nf4")


class Heard(SilentProgress):
    """Keeps what is said of the coded layers."""

    line = ""

    def say(self, line: str) -> None:
        """Keep the line."""
        self.line = line if "layers of the base" in line else self.line


def settled(settings: dict[str, Any], name: str) -> Any:
    """Return a run's settings, checked."""
    return config_from(settings, name=name)


def painter(targets: dict[str, str]) -> Callable[[Path, argparse.Namespace], Task]:
    """Return what makes DreamBooth on the embedded base."""

    def made(work: Path, options: argparse.Namespace) -> Task:
        del options
        config = settled(
            {
                "task": "dreambooth", "base": "visionpeft/emoji-sd", "output": str(work / "run"),
                "data": {"instance": {"images": str(ASSETS / "subjects" / "owl"), "prompt": "a photo of sks bird"}},
                "adapter": {"method": "lora", "rank": 16, "targets": targets},
            },
            name="emoji-sd",
        )  # fmt: skip
        return dreambooth.build(config)

    return made


def tiny_painter(work: Path, options: argparse.Namespace) -> Task:
    """Make DreamBooth on an SD 1.5 in small with random weights, as the tests have it."""
    from tests.tiny import tiny_sd1
    from visionpeft.adapters.spec import LoraSpec
    from visionpeft.models.base import Base
    from visionpeft.models.family import family_of
    from visionpeft.tasks.dreambooth import DreamBooth
    from visionpeft.tasks.dreambooth_settings import DreamBoothData

    del work, options
    pipeline = tiny_sd1()
    instance = {"images": ASSETS / "subjects" / "owl", "prompt": "a photo of sks dog"}
    data = DreamBoothData.model_validate({"instance": instance})
    base = Base(pipeline, family_of(pipeline), "tiny", "")
    return DreamBooth(base, data, LoraSpec(rank=16, targets={"unet": "attention"}))


def classifier(work: Path, options: argparse.Namespace) -> Task:
    """Make the demo's classifier."""
    del options
    table = work / "classes" / "labels.csv"
    if not table.is_file():
        table = write_classes(table.parent, dict.fromkeys(classify_demo.COUNTS, 8), classify_demo.SIDE, seed=0)
    return classification.build(settled(classify_demo.demo_settings(table, work / "run"), name="emoji-vit"))


def detector(work: Path, options: argparse.Namespace) -> Task:
    """Make the demo's detector."""
    del options
    folder = work / "boxes"
    if not (folder / "boxes.json").is_file():
        write_boxes(folder, 24, detect_demo.SIDE, seed=0)
    return detection.build(settled(detect_demo.demo_settings(folder, work / "run"), name="emoji-detr"))


def listener(work: Path, options: argparse.Namespace) -> Task:
    """Make Whisper tiny.en on the demo's speech."""
    settings: dict[str, Any] = transcribe_demo.demo_settings(work / "run")
    return speech.build(settled({**settings, "base": str(options.whisper)}, name="tiny.en"))


WORKS: dict[str, Callable[[Path, argparse.Namespace], Task]] = {
    "SD 1.5 in small, random weights": tiny_painter,
    "emoji-sd, UNet": painter({"unet": "attention"}),
    "emoji-sd, UNet and text encoder": painter({"unet": "attention", "text_encoder": "attention"}),
    "emoji-vit": classifier,
    "emoji-detr": detector,
    "Whisper tiny.en": listener,
}
"""What is measured, each by what makes its task."""


def row(*cells: str) -> str:
    """Return a line of the table."""
    return "| " + " | ".join(cells) + " |"


def cells(whole: Answer, other: Answer) -> tuple[str, ...]:
    """Return how another answer differs."""
    found = compared(whole, other)
    return f"{100 * found.off:+.3f} %", f"{found.cosine:.5f}", f"{found.length:.4f}"


def measured(name: str, work: Path, options: argparse.Namespace) -> list[str]:
    """Return the lines of a work."""
    heard = Heard()
    accelerator = Accelerator(cpu=options.device == "cpu")
    where = accelerator, accelerator.device, None, 0, 1, 0, work, heard
    context, make = Context(*where), WORKS[name]

    def said(precision: Precision, base: Any) -> Answer:
        return answer(lambda: make(work, options), context, precision, base, options.batches, options.size)

    exact, bf16 = said(FP32, "auto"), said(BF16, "auto")
    lines = [row(name, "bf16", "", f"{exact.loss:.4f}", *cells(exact, bf16))]
    for code in CODES:
        other = said(BF16, code)
        weights = heard.line.split(": ")[1].split(";")[0].replace(" of weights in ", " → ")
        lines.append(row(name, code, weights, f"{bf16.loss:.4f}", *cells(bf16, other)))
    return lines


def main() -> None:
    """Measure every work and print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.quantized", description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where data are made")
    parser.add_argument("--whisper", type=Path, help="a folder of Whisper tiny.en; without it that line is left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--size", type=int, default=4, help="samples of a batch")
    parser.add_argument("--part", default="", help="only works that have this in their name")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{device}, torch {torch.__version__}, {options.batches} batches of {options.size}\n")
    header = ("work", "base", "weights", "loss", "off", "cosine", "length")
    print(row(*header), row(*("---" for _ in header)), sep="\n")
    for name, make in WORKS.items():
        if options.part not in name or (make is listener and options.whisper is None):
            continue
        work = options.work / name.replace(" ", "-").replace(",", "")
        work.mkdir(parents=True, exist_ok=True)
        print(*measured(name, work, options), sep="\n", flush=True)


if __name__ == "__main__":
    main()

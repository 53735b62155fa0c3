"""A folder to train in: a tiny base with random weights, noise for photographs, and settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from tests.tiny import tiny_sd1

ROOT = Path(__file__).parents[2]
SETTINGS = """
task: dreambooth
base: base
data:
  instance: {images: photos, prompt: a photo of sks robot}
  prior: {prompt: a photo of a robot, count: 3, steps: 2}
adapter: {method: lora, rank: 2, targets: {unet: attention, text_encoder: attention}}
train: {steps: 50, batch_size: 4, learning_rate: 1e-3, checkpoint_every: 7, log_every: 1, ema: 0.9}
preview: {every: 25, prompts: [a photo of sks robot on the moon], seeds: [0], steps: 2}
score: {every: 0}
output: out
"""


def furnish(folder: Path) -> Path:
    """Write base, photographs and ``job.yaml``; return the folder."""
    tiny_sd1().save_pretrained(folder / "base")
    (folder / "photos").mkdir()
    for number in range(3):
        noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / "photos" / f"{number}.png")
    (folder / "job.yaml").write_text(SETTINGS)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The variables of a run in ``folder``: one thread, a cache of its own, the sources on the path."""
    mine = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **mine, "CUDA_VISIBLE_DEVICES": ""}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python program in the folder."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment(folder), text=True, stderr=subprocess.PIPE
    )


def losses(log: Path) -> torch.Tensor:
    """The loss of every step, float64."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if line["kind"] == "train"], dtype=torch.float64)

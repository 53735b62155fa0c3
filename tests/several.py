"""A short job for every task, run by its script in one process or several, and what two runs came to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.e2e.place import ROOT, furnish
from tests.tiny_speech import speech_settings, write_speech, write_whisper
from tests.vision_place import classify_settings, detect_settings, write_base, write_pictures, write_scenes
from visionpeft.adapters.archive import Adapter

BATCH = 8
"""Samples of a step, shared out over processes."""


def _dreambooth(place: Path) -> dict[str, Any]:
    furnish(place)
    prior = {"prompt": ["a photo of a robot", "a photo of a cat"], "count": 9, "steps": 2}
    return {
        "task": "dreambooth",
        "base": str(place / "base"),
        "data": {"instance": {"images": str(place / "photos"), "prompt": "a photo of sks robot"}, "prior": prior,
                 "flip": True},
        "adapter": {"method": "lora", "rank": 2, "targets": {"unet": "attention", "text_encoder": "attention"}},
        "preview": {"every": 25, "prompts": ["a photo of sks robot on the moon"], "seeds": [0, 1, 2], "steps": 2},
        "score": {"every": 0},
    }  # fmt: skip


def _classify(place: Path) -> dict[str, Any]:
    write_base(place / "base", "vit")
    write_pictures(place / "pictures", {"red": 12, "green": 10, "blue": 11})
    settings = classify_settings(place, class_weights="balanced")
    mix = {"mixup": 0.4, "cutmix": 1.0}
    return settings | {"data": settings["data"] | {"mix": mix, "augment": {"flip_horizontal": True}, "workers": 1}}


def _detect(place: Path, base: str = "rt_detr") -> dict[str, Any]:
    write_base(place / "base", base)
    told = place / "base" / "config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"dropout": 0.0}))
    write_scenes(place / "pictures", 20)
    settings = detect_settings(place)
    augment = {"flip_horizontal": 0.5, "crop": 0.5, "mosaic": 0.3}
    return settings | {"data": settings["data"] | {"augment": augment, "workers": 1}}


def _transcribe(place: Path) -> dict[str, Any]:
    write_whisper(place / "base")
    write_speech(place / "speech", 40)
    settings = speech_settings(place)
    data: Any = settings["data"]
    return settings | {"data": data | {"grouped": True, "augment": {"speed": 0.5, "time_masks": 1}}}


JOBS: Mapping[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "dreambooth": ("train_dreambooth.py", _dreambooth),
    "classify": ("train_classifier.py", _classify),
    "detect": ("train_detector.py", _detect),
    "detect_detr": ("train_detector.py", lambda place: _detect(place, "detr")),
    "transcribe": ("train_whisper.py", _transcribe),
}
"""Name -> the task's script, and what writes bases and data and returns settings."""


def write_job(place: Path, job: str, steps: int) -> Path:
    """Write base, data and settings of a job; return the settings file."""
    place.mkdir(parents=True, exist_ok=True)
    train = {"steps": steps, "batch_size": BATCH, "learning_rate": 1e-3, "checkpoint_every": 0, "log_every": 1,
             "evaluate_every": 0 if job == "dreambooth" else 25, "precision": "fp32"}  # fmt: skip
    settings = JOBS[job][1](place) | {"train": train, "output": str(place / "out")}
    (place / "job.yaml").write_text(yaml.safe_dump(settings))
    return place / "job.yaml"


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launched(processes: int, launcher: str = "torchrun") -> list[str]:
    """The beginning of the command that starts a script in so many processes."""
    if processes == 1:
        return [sys.executable]
    if launcher == "accelerate":
        how = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        how += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        return [sys.executable, *how, "--main_process_port", free_port()]
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port(),
    ]  # fmt: skip


def start(place: Path, job: str, processes: int, *overrides: str, launcher: str = "torchrun") -> subprocess.Popen[str]:
    """Start a job by its script; the global batch is ``BATCH`` for any number of processes."""
    mine = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    command = [*launched(processes, launcher), str(ROOT / "scripts" / JOBS[job][0]), str(place / "job.yaml")]
    return subprocess.Popen(
        [*command, f"train.batch_size={BATCH // processes}", *overrides],
        env={**os.environ, **mine, "CUDA_VISIBLE_DEVICES": ""}, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def losses(folder: Path) -> torch.Tensor:
    """The loss of every step of a run, float64."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if line["kind"] == "train"], dtype=torch.float64)


def figures(folder: Path) -> list[dict[str, float]]:
    """The evaluations of a run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "evaluate"]
    return [{k: v for k, v in line.items() if k != "kind" and v is not None} for line in found]


def last_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The trained tensors after the last step of a run."""
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    return Adapter.load(newest / "adapter.safetensors").tensors


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The length of the difference of two adapters as a share of the first's."""
    assert one.keys() == other.keys()
    first, second = (torch.cat([tensors[name].double().flatten() for name in sorted(one)]) for tensors in (one, other))
    return float((first - second).norm() / first.norm())

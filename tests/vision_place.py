"""Folders to train vision tasks in: tiny bases with random weights, pictures whose labels can be learned, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from tests.tiny_vision import tiny_vision

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}


def write_base(folder: Path, name: str) -> Path:
    """Write a tiny model as a folder of transformers, and return it."""
    tiny_vision(name).save_pretrained(folder)
    side = 64 if "detr" in name else 32
    told = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def write_pictures(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write noisy pictures of a colour each and ``table.csv`` (path, label, patient, site); return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,label,patient,site"]
    for place, (label, count) in enumerate(counts.items()):
        for number in range(count):
            rng = np.random.default_rng([seed, place, number])
            noise = rng.normal(0, 60, (40, 36, 3)) + np.array(COLOURS[label])
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{label}{number}.png")
            rows.append(f"{label}{number}.png,{label},{label}-{number // 2},{'ab'[number % 2]}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def write_scenes(folder: Path, count: int, side: int = 64, size: tuple[int, int] | None = None) -> Path:
    """Write pictures with one or two coloured rectangles and ``boxes.json`` in COCO's layout; return the folder.

    They are squares of ``side``, or of ``size`` (width, height).
    """
    across, down = size or (side, side)
    side = min(across, down)
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.default_rng([7, number])
        picture = Image.fromarray(rng.integers(0, 90, (down, across, 3), dtype=np.uint8))
        for label in rng.choice(3, size=int(rng.integers(1, 3)), replace=False).tolist():
            left, top = rng.integers(2, side // 2, 2).tolist()
            width, height = rng.integers(12, side // 2 - 2, 2).tolist()
            box = (left, top, left + width - 1, top + height - 1)
            ImageDraw.Draw(picture).rectangle(box, fill=list(COLOURS.values())[label])
            sides = [left, top, width, height]
            objects.append({"id": len(objects) + 1, "image_id": number, "category_id": label, "bbox": sides,
                            "area": width * height, "iscrowd": 0})  # fmt: skip
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": across, "height": down})
    categories = [{"id": place, "name": name} for place, name in enumerate(COLOURS)]
    told = {"images": images, "annotations": objects, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(told))
    return folder


def classify_settings(place: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short classification in a folder with ``base`` and ``pictures/table.csv``."""
    settings: dict[str, Any] = {
        "task": "classify",
        "base": str(place / "base"),
        "data": {
            "source": {"format": "table", "path": str(place / "pictures" / "table.csv"), "patient": "patient"},
            "workers": 0,
        },
        "adapter": {"method": "lora", "rank": 2, "targets": "attention"},
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 2, "evaluate_every": 2},
        "report": {"resamples": 20},
        "output": str(place / "out"),
    }
    return settings | changes


def everything(folder: Path, step: int) -> list[bytes]:
    """The bytes of a checkpoint."""
    whole = folder / "checkpoints" / f"step_{step:06d}"
    return [(whole / name).read_bytes() for name in ("adapter.safetensors", "state.safetensors", "state.json")]


def seeded(*shape: int) -> torch.Tensor:
    """Normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def detect_settings(place: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short detection in a folder with ``base`` and ``pictures/boxes.json``."""
    settings: dict[str, Any] = {
        "task": "detect",
        "base": str(place / "base"),
        "data": {
            "source": {"format": "coco", "folder": str(place / "pictures"), "annotations": "boxes.json"},
            "split": {"validation": 0.2, "test": 0.25},
            "workers": 0,
        },
        "adapter": {"method": "lora", "rank": 2, "targets": "encoder"},
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2, "evaluate_every": 2},
        "report": {"resamples": 10},
        "output": str(place / "out"),
    }
    return settings | changes

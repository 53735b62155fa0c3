"""200 steps from one seed, launched, recorded, and recorded and compiled: how far adapters and losses part."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from scripts.bench.train_works import DEVICE, WORKS, by_engine
from visionpeft.training.settings import TrainConfig

WAYS: dict[str, dict[str, Any]] = {
    "launched": {"record": "off", "compile": "off"},
    "recorded": {"record": "auto", "compile": "off"},
    "recorded and compiled": {"record": "auto", "compile": "on"},
}
"""Name -> settings; the first is what the others are compared with."""

COLOURS = ("#1f3a5f", "#c8553d", "#4a8f5b")
SIZE, MARGIN = (900, 420), 50


def compare_losses(folder: Path, *, tiny: bool) -> list[str]:
    """Train each way, draw ``losses.png`` in the folder, and return lines on how far the ways are apart."""
    losses: dict[str, list[float]] = {}
    adapters: dict[str, torch.Tensor] = {}
    for way, changes in WAYS.items():
        task = next(iter(WORKS.values())).task(folder / way, tiny)
        base = {"steps": 4 if tiny else 200, "batch_size": 1, "precision": "bf16", "log_every": 1,
                "learning_rate": 1e-3, "checkpoint_every": 0, "seed": 0}  # fmt: skip
        _, adapter = by_engine(task, TrainConfig.model_validate(base | changes), folder / way / "run")
        losses[way] = _losses(folder / way / "run")
        adapters[way] = torch.cat([tensor.double().flatten() for _, tensor in sorted(adapter.tensors.items())])
    draw(losses, folder / "losses.png")
    return [f"{DEVICE}: {len(losses['launched'])} steps from one seed", *differences(losses, adapters)]


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def differences(losses: Mapping[str, Sequence[float]], adapters: Mapping[str, torch.Tensor]) -> list[str]:
    """Return a line for each way but the first."""
    first, *others = adapters
    whole = adapters[first].norm()
    lines: list[str] = []
    for way in others:
        apart = float((adapters[way] - adapters[first]).norm() / whole)
        worst = max(abs(a - b) / abs(b) for a, b in zip(losses[way], losses[first], strict=True))
        lines.append(f"{way}: adapter apart by {apart:.2e} of its norm, losses by {worst:.2e} at most")
    return lines


def draw(losses: Mapping[str, Sequence[float]], file: Path) -> None:
    """Draw all curves over each other, each thinner than the one below it."""
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    every = [value for curve in losses.values() for value in curve]
    low, high = min(every), max(every) + 1e-12
    width, height = SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN
    pen.rectangle((MARGIN, MARGIN, MARGIN + width, MARGIN + height), outline="#999999")
    for number, (way, curve) in enumerate(losses.items()):
        points = [
            (MARGIN + width * at / max(1, len(curve) - 1), MARGIN + height * (high - value) / (high - low))
            for at, value in enumerate(curve)
        ]
        pen.line(points, fill=COLOURS[number], width=5 - 2 * number)
        pen.text((MARGIN + 180 * number, 20), way, fill=COLOURS[number], font_size=16)
    for value, at in ((high, MARGIN), (low, MARGIN + height)):
        pen.text((4, at - 8), f"{value:.3f}", fill="#333333", font_size=13)
    pen.text((MARGIN, MARGIN + height + 10), f"loss of steps 1 to {len(next(iter(losses.values())))}", fill="#333333",
             font_size=13)  # fmt: skip
    picture.save(file)

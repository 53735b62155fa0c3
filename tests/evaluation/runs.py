"""A run's folder as a training leaves it, made up for the tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from visionpeft.evaluation.report_data import Outcome, write_outcome, write_proofs
from visionpeft.evaluation.strip import before_after_sheet
from visionpeft.files.proof import ProgramProof, Proof

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def picture(hue: int, side: int = 96, shape: str = "ellipse") -> Image.Image:
    """A coloured shape on a ground of another colour."""
    image = Image.new("HSV", (side, side), ((hue + 120) % 256, 70, 235)).convert("RGB")
    draw = ImageDraw.Draw(image)
    box = (side * 0.25, side * 0.25, side * 0.75, side * 0.75)
    fill = tuple(Image.new("HSV", (1, 1), (hue % 256, 210, 220)).convert("RGB").getpixel((0, 0)))
    getattr(draw, shape)(box, fill=fill)
    return image


def make_run(folder: Path, *, prompt: str = "a photo of sks robot on a blue background") -> Path:
    """Write a whole run: log, metrics, proof, settings, previews, files."""
    folder.mkdir(parents=True)
    (folder / "exports").mkdir()
    captions = {"0": prompt, "1": "a photo of sks robot"}
    lines: list[dict[str, Any]] = [{"step": s, "kind": "train", "loss": _loss(s)} for s in range(1, 401)]
    for step in (0, 100, 200, 300, 400):
        files = {name: f"previews/step_{step:06d}_{name}.png" for name in captions}
        for name, place in files.items():
            (folder / place).parent.mkdir(exist_ok=True)
            picture(step // 3 + 40 * int(name)).save(folder / place)
        lines.append({"step": step, "kind": "preview", "files": files, "captions": captions})
        if step:
            lines.append({"step": step, "kind": "evaluate"} | _scores(step))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_outcome(folder, Outcome(**_metrics(prompt)))
    write_proofs(folder, _proofs(folder))
    (folder / "config.yaml").write_text(f"task: dreambooth\nprompt: {json.dumps(prompt)}\ntrain: {{steps: 400}}\n")
    (folder / "adapter.safetensors").write_bytes(b"a" * 1_400_000)
    (folder / "exports" / "robot.kohya.safetensors").write_bytes(b"k" * 1_410_000)
    pictures = [picture(10 * i) for i in range(5)]
    sheet = before_after_sheet(pictures, pictures[:4], pictures[1:], [prompt, "two", "three", "four"])
    sheet.save(folder / "before_after.png")
    return folder


def _loss(step: int) -> float:
    return 0.22 + 0.3 * math.exp(-step / 60) + 0.06 * math.sin(step * 12.9898) * math.cos(step * 4.1)


def _scores(step: int) -> dict[str, float]:
    share = 1 - math.exp(-step / 130)
    return {
        "subject": 0.61 + 0.24 * share,
        "prompt": 0.412 - 0.00006 * step,
        "diversity": 0.21 - 0.0002 * step,
        "drift": 0.0007 * step,
        "subject_share": share,
        "prompt_share": 1 - 0.0004 * step,
        "score": share * (1 - 0.0004 * step),
        "eligible": float(step < 350),
    }


def _metrics(prompt: str) -> dict[str, Any]:
    return {
        "name": "robot",
        "task": "dreambooth",
        "subject": "sks robot",
        "program": "visionpeft 0.1.0",
        "base": {"id": "visionpeft/emoji-sd", "hash": "0f3a9c"},
        "adapter": {"method": "lora", "rank": 16, "unknown": None, "modules": 96, "parameters": 688_128},
        "steps": 400,
        "best_step": 300,
        "max_drift": 0.25,
        "before": {
            "subject": 0.61,
            "real": 0.85,
            "prompt": 0.412,
            "other_prompt": 0.251,
            "diversity": 0.21,
            "seed_distance": 0.33,
        },
        "after": _scores(300),
        "seconds": {"prepare": 3.4, "class pictures": 41.0, "train": 131.2, "score": 38.5, "export": 1.1},
        "machine": {"device": "cpu", "cores": 2, "memory": "8.3 GB"},
        "versions": {"python": "3.11.9", "torch": "2.13.0", "diffusers": "0.42.1"},
        "data": [{"file": f"photos/{i}.png", "width": 128, "height": 128, "note": ""} for i in range(4)]
        + [{"file": prompt, "width": 640, "height": 480, "note": "turned upright by its EXIF entry"}],
        "warnings": ["photos/4.jpg: two pictures are nearly the same"],
        "peak_memory": 2_310_000_000,
    }


def _proofs(folder: Path) -> list[Proof]:
    def row(program: str, accepted: bool) -> ProgramProof:
        error = 2.1e-7 if accepted else math.inf
        notes = () if accepted else ("expects keys that begin with lora_unet",)
        return ProgramProof(program, accepted, 96 * accepted, 96, (), error, error, 1e-5, notes)

    programs = {"diffusers": True, "comfyui": True, "automatic1111": True, "invokeai": False}
    rows = {name: row(name, accepted) for name, accepted in programs.items()}
    return [Proof(folder / "exports" / "robot.kohya.safetensors", rows, ("diffusers", "comfyui", "automatic1111"))]

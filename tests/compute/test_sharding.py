"""A base that two processes share is trained as one process trains it whole: every kind of task, to its end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.processes import run_together
from tests.tiny import tiny_sdxl
from tests.tiny_speech import speech_settings, write_speech, write_whisper
from tests.vision_place import classify_settings, write_base, write_pictures
from visionpeft.adapters.archive import Adapter
from visionpeft.config import config_from
from visionpeft.progress import SILENT, Progress, SilentProgress
from visionpeft.run import JOBS, train
from visionpeft.training.engine import fit

TRAIN = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "ema": 0.9, "checkpoint_every": 2, "evaluate_every": 2,
         "log_every": 1}  # fmt: skip
WORK = "import sys; from tests.compute.test_sharding import shared_out; shared_out(sys.argv[1])"


def settings(place: Path) -> dict[str, dict[str, Any]]:
    """Settings of a run by name."""
    recomputing = TRAIN | {"gradient_checkpointing": True}
    lora = {"method": "lora", "rank": 2, "targets": "all-linear"}
    vit = classify_settings(place, base=str(place / "vit"), train=TRAIN, adapter=lora)
    whisper = speech_settings(place, base=str(place / "whisper"), train=TRAIN)
    sdxl = {
        "task": "dreambooth", "base": str(place / "sdxl"), "train": TRAIN,
        "data": {"instance": {"images": str(place / "photos"), "prompt": "a photo of sks robot"},
                 "prior": {"prompt": "a photo of a robot", "count": 3, "steps": 2}},
        "adapter": {"method": "lora", "rank": 2, "targets": {"unet": "attention", "text_encoder_2": "attention"}},
        "preview": {"every": 2, "prompts": ["a photo of sks robot"], "seeds": [0], "steps": 2},
        "score": {"every": 2, "seeds": [0], "steps": 2, "prompts": ["a photo of {subject}"],
                  "unrelated_prompts": ["a red dog"]},
    }  # fmt: skip
    return {
        "vit": vit,
        "vit-recomputing": vit | {"train": recomputing},
        "vit-dora": vit | {"adapter": lora | {"method": "dora"}},
        "whisper": whisper,
        "whisper-recomputing": whisper | {"train": recomputing},
        "sdxl": sdxl,
        "sdxl-recomputing": sdxl | {"train": recomputing},
    }


class Lines(SilentProgress):
    """Adds what is said to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def say(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(line + "\n")


def shared_out(folder: str) -> None:
    """Make every run on a shared base, the first of each model in two parts; in each of two processes."""
    place, rank = Path(folder), os.environ["RANK"]
    for name, given in settings(place).items():
        for steps in (4,) if "-" in name else (2, 4):
            changed = given["train"] | {"batch_size": 2, "steps": steps, "shard": "on"}
            said = Lines(place / "said" / f"{name}-{rank}")
            learn(given | {"train": changed, "output": str(place / "two" / name), "resume": "auto"}, said)


def learn(given: dict[str, Any], said: Progress = SILENT) -> None:
    """Make a run; of a subject, with all that is delivered from the base that was trained on."""
    config = config_from(given)
    if given["task"] == "dreambooth":
        train(config, progress=said)
    else:
        task = JOBS[config.task].build(config, said)
        fit(task, config.train, config.output, resume=config.resume, progress=said)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have made all runs."""
    folder = tmp_path_factory.mktemp("shared")
    write_base(folder / "vit", "vit")
    write_pictures(folder / "pictures", {"red": 16, "green": 12, "blue": 8})
    write_whisper(folder / "whisper")
    write_speech(folder / "speech", 32)
    tiny_sdxl().save_pretrained(folder / "sdxl")
    (folder / "photos").mkdir()
    for number in range(3):
        noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / "photos" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    """The folder of the runs of two processes."""
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    done = run_together(WORK, place)
    assert [status for status, _ in done] == [0, 0], "\n".join(said for _, said in done)
    return place / "two"


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in log if line["kind"] == kind]


def figures(run: Path) -> list[float]:
    """What the log says of every step and every look at the adapter."""
    found = [lines(run, kind) for kind in ("train", "evaluate")]
    assert [line["step"] for line in found[0]] == [1, 2, 3, 4]
    names = ("loss", "gradient_norm", "log_likelihood", "wer", "score")
    return [line[name] for kind in found for line in kind for name in names if name in line]


@pytest.mark.parametrize("name", list(settings(Path())))
def test_steps_figures_and_adapter_are_those_of_one_process(place: Path, two: Path, name: str):
    one = place / "one" / name
    learn(settings(place)[name] | {"output": str(one)})
    assert len(figures(one)) >= 10
    assert figures(two / name) == pytest.approx(figures(one), rel=1e-5, abs=1e-5)
    for step in ("step_000002", "step_000004"):
        file = Path("checkpoints", step, "adapter.safetensors")
        mine, theirs = Adapter.load(two / name / file), Adapter.load(one / file)
        assert mine.specs == theirs.specs
        for key, tensor in {**theirs.tensors, **theirs.heads}.items():
            off = torch.linalg.vector_norm({**mine.tensors, **mine.heads}[key] - tensor)
            assert off <= 1e-5 * max(1.0, float(torch.linalg.vector_norm(tensor))), key

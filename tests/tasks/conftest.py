import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.tiny import tiny_sd1, tiny_sd2, tiny_sdxl
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute.thrift import Thrift
from visionpeft.data.order import positions
from visionpeft.models.base import Base, weights_hash
from visionpeft.models.family import components_of, family_of
from visionpeft.progress import SilentProgress
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.tasks.dreambooth_settings import DreamBoothData
from visionpeft.training.rng import StepRng
from visionpeft.training.task import Context

PIPELINES = {"sd1": tiny_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}
UNET = LoraSpec(rank=2)
BOTH = LoraSpec(rank=2, targets={"unet": "attention", "text_encoder": "attention"})
CPU = torch.device("cpu")


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def base_of(name="sd1"):
    pipeline = PIPELINES[name]()
    return Base(pipeline, family_of(pipeline), f"tiny/{name}", weights_hash(components_of(pipeline)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def make(photos, tmp_path):
    """Makes prepared tasks: make(base="sd1", adapter=UNET, prior=…, seed=0, …settings of the data)."""

    def made(base="sd1", adapter=UNET, *, seed=0, preview=None, score=None, progress=None, recompute=False, **data):
        instance = {"images": photos, "prompt": "a photo of sks robot", **data.pop("instance", {})}
        base = base_of(base) if isinstance(base, str) else base
        task = DreamBooth(base, DreamBoothData(instance=instance, **data), adapter, preview=preview, score=score)
        progress = progress or Lines()
        task.prepare(
            Context(Accelerator(cpu=True), CPU, None, 0, 1, seed, tmp_path / "run", progress, Thrift(recompute))
        )
        return task

    return made


def step(task, number=0, size=4, slots=None, seed=0):
    """The output of one step's loss over these slots of a global batch of ``size``."""
    slots = list(range(size)) if slots is None else slots
    drawn = positions(seed, task.samples(), number * size, size)
    batch = task.batch([drawn[slot] for slot in slots])
    return task.loss(batch, StepRng(seed, number, torch.tensor(slots), size, CPU))


PRIOR = {"prompt": "a photo of a robot", "count": 4, "steps": 2, "weight": 0.5, "target": "pictures"}
TAUGHT = {**PRIOR, "target": "base"}

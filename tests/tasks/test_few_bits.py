"""A base in few bits under every task: what is coded, what stays, and that runs go on and learn as ever."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.tasks.conftest import CPU, base_of
from tests.training.test_resume import everything
from tests.vision_place import classify_settings, detect_settings, write_base, write_pictures, write_scenes
from visionpeft.adapters.coded import Coded
from visionpeft.adapters.spec import FullSpec, LoraSpec
from visionpeft.compute.thrift import MemoryConfig, Thrift
from visionpeft.config import config_from
from visionpeft.delivery import classification, detection
from visionpeft.errors import ConfigError
from visionpeft.progress import RecordingProgress, SilentProgress
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.tasks.dreambooth_settings import DreamBoothData
from visionpeft.training.engine import fit
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import Context

UNET = LoraSpec(rank=2, targets={"unet": "attention"})
BOTH = LoraSpec(rank=2, targets={"unet": "attention", "text_encoder": "attention.q"})


def coded(model: nn.Module) -> int:
    return sum(isinstance(module, Coded) for module in model.modules())


def dreambooth(photos: Path, adapter=UNET) -> DreamBooth:
    data = DreamBoothData.model_validate({"instance": {"images": photos, "prompt": "a photo of sks robot"}})
    return DreamBooth(base_of("sd1"), data, adapter)


@pytest.mark.parametrize("code", ["fp8", "int8", "nf4"])
def test_what_a_step_goes_through_is_coded_and_the_rest_stays(photos: Path, tmp_path: Path, code: str):
    said = RecordingProgress(SilentProgress())
    for adapter, encoders in ((UNET, 0), (BOTH, 12)):
        task = dreambooth(photos, adapter)
        thrift = Thrift(memory=MemoryConfig(base=code))
        task.prepare(Context(Accelerator(cpu=True), CPU, torch.bfloat16, 0, 1, 0, tmp_path, said, thrift))
        assert coded(task.base.unet) > 30
        assert coded(task.base.text_encoders["text_encoder"]) == encoders
        assert coded(task.base.vae) == 0
        assert task.base.unet.dtype == torch.bfloat16
    assert f"layers of the base are kept in {code}" in said.lines[0]


def test_full_tuning_says_what_to_set(photos: Path, tmp_path: Path):
    train = TrainConfig(steps=1, memory=MemoryConfig(base="nf4"))
    with pytest.raises(ConfigError, match=r"train\.memory\.base: full tuning"):
        fit(dreambooth(photos, FullSpec(targets={"unet": "attention"})), train, tmp_path / "run")


def test_a_run_in_4_bits_goes_on_bit_equal(photos: Path, tmp_path: Path):
    train = TrainConfig(steps=4, batch_size=2, learning_rate=1e-3, checkpoint_every=2, memory=MemoryConfig(base="nf4"))
    fit(dreambooth(photos), train, tmp_path / "straight")
    fit(dreambooth(photos), train.model_copy(update={"steps": 2}), tmp_path / "parted")
    fit(dreambooth(photos), train, tmp_path / "parted", resume="auto")
    assert everything(tmp_path / "parted", 4) == everything(tmp_path / "straight", 4)


def test_recomputing_makes_the_same_steps_in_4_bits(photos: Path, tmp_path: Path):
    train = TrainConfig(steps=2, batch_size=2, learning_rate=1e-3, memory=MemoryConfig(base="nf4"))
    found = [
        fit(
            dreambooth(photos), train.model_copy(update={"gradient_checkpointing": share}), tmp_path / str(share)
        ).adapter
        for share in (False, True)
    ]
    for name, tensor in found[0].tensors.items():
        torch.testing.assert_close(tensor, found[1].tensors[name], atol=1e-5, rtol=1e-4)


def test_a_run_may_go_on_with_another_base(photos: Path, tmp_path: Path):
    train = TrainConfig(steps=2, batch_size=2, learning_rate=1e-3)
    fit(dreambooth(photos), train, tmp_path / "run")
    other = train.model_copy(update={"steps": 3, "memory": MemoryConfig(base="int8")})
    assert fit(dreambooth(photos), other, tmp_path / "run", resume="auto").steps == 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vision")


@pytest.mark.parametrize("kind", ["vit", "detr"])
def test_vision_in_few_bits_learns_and_goes_on_bit_equal(place: Path, tmp_path: Path, kind: str):
    folder = place / kind
    write_base(folder / "base", kind)
    if kind == "vit":
        write_pictures(folder / "pictures", {"red": 16, "green": 12, "blue": 8})
    else:
        write_scenes(folder / "pictures", 16)
    settings, build = (classify_settings, classification.build) if kind == "vit" else (detect_settings, detection.build)
    given = settings(folder)
    config = config_from({**given, "train": {**given["train"], "memory": {"base": "int8"}}})
    task = build(config)
    assert math.isfinite(fit(task, config.train, tmp_path / "straight").history[-1][task.metric])
    assert coded(task.base.model) > 8
    fit(build(config), config.train.model_copy(update={"steps": 2}), tmp_path / "parted")
    fit(build(config), config.train, tmp_path / "parted", resume="auto")
    mine, theirs = (everything(tmp_path / run, 4)[0] for run in ("parted", "straight"))
    assert mine == theirs

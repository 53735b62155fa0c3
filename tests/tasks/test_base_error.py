"""What a base in few bits costs is measured on one adapter and the same batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.tasks.conftest import CPU, Lines, base_of
from visionpeft.adapters.spec import LoraSpec
from visionpeft.compute.precision import FP32
from visionpeft.tasks.base_error import Answer, answer, base_errors, compared
from visionpeft.tasks.dreambooth import DreamBooth
from visionpeft.tasks.dreambooth_settings import DreamBoothData
from visionpeft.training.task import Context


def test_the_figures_are_those_of_two_vectors():
    one, other = Answer(2.0, torch.tensor([3.0, 4.0]).double()), Answer(2.5, torch.tensor([0.0, 10.0]).double())
    found = compared(one, other)
    assert (found.loss, found.off, found.length) == (2.0, 0.25, 2.0)
    assert found.cosine == pytest.approx(0.8)


def test_more_bits_cost_less_and_none_cost_nothing(photos: Path, tmp_path: Path):
    data = DreamBoothData.model_validate({"instance": {"images": photos, "prompt": "a photo of sks robot"}})
    spec = LoraSpec(rank=2, dropout=0.5, targets={"unet": "attention"})
    context = Context(Accelerator(cpu=True), CPU, None, 0, 1, 0, tmp_path, Lines())

    def build() -> DreamBooth:
        return DreamBooth(base_of("sd1"), data, spec)

    found = base_errors(build, context, FP32, batches=2)
    assert list(found) == ["fp8", "int8", "nf4"]
    assert 1 > found["int8"].cosine > found["fp8"].cosine > found["nf4"].cosine > 0.9
    assert all(0 < abs(one.off) < 0.05 and abs(one.length - 1) < 0.2 for one in found.values())
    twice = [answer(build, context, FP32, "auto", 2, 2) for _ in range(2)]
    again = compared(*twice)
    assert (again.off, again.length) == (0.0, 1.0)
    assert torch.equal(twice[0].gradient, twice[1].gradient)
    assert (twice[0].gradient != 0).float().mean() > 0.99  # of both factors

"""Which arithmetic a setting means on a device."""

from __future__ import annotations

import pytest
import torch

from visionpeft.compute.precision import BF16, FP16, FP32, precision_of
from visionpeft.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("setting", "expected"), [("auto", FP32), ("fp32", FP32), ("bf16", BF16)])
def test_on_a_cpu(setting, expected):
    assert precision_of(setting, CPU) == expected


def test_float16_on_a_cpu_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"train\.precision: 'fp16' needs a CUDA device.*'auto'"):
        precision_of("fp16", CPU)


@pytest.mark.parametrize(("native", "expected"), [(True, BF16), (False, FP16)])
def test_auto_on_cuda_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch, native: bool, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision_of("auto", CUDA) == expected
    assert precision_of("fp16", CUDA) == FP16


def test_only_float16_needs_its_loss_scaled():
    assert [p.scaled for p in (FP32, FP16, BF16)] == [False, True, False]


@pytest.mark.parametrize(("precision", "dtype"), [(FP32, torch.float32), (BF16, torch.bfloat16)])
def test_autocast_computes_in_it(precision, dtype):
    with precision.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype

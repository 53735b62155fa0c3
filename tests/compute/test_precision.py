import pytest
import torch

from visionpeft.compute.precision import BF16, FP32, precision_of
from visionpeft.errors import ConfigError

CPU = torch.device("cpu")


def test_automatic_precision_on_the_cpu_is_float32():
    assert precision_of("auto", CPU) is FP32
    with FP32.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_bfloat16_computes_in_it():
    assert precision_of("bf16", CPU) is BF16
    with BF16.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_float16_needs_a_gpu():
    with pytest.raises(ConfigError, match="Use 'auto'"):
        precision_of("fp16", CPU)

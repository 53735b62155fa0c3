"""Fused norms, gates and frozen convolutions: their gradients, what they keep, and Triton's kernels themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compute import plain_kernels
from visionpeft.compute import fused

SHAPES = [(2, 320, 8, 8, 32), (1, 64, 5, 7, 8), (1, 40, 16, 16, 8), (1, 96, 33, 31, 32), (3, 32, 2, 3, 32)]
"""[N, C, H, W] and groups: widths of groups that are no powers of two, odd sides, one channel a group."""


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU take the path of a GPU, with formulas in place of kernels."""
    monkeypatch.setattr(fused, "_fuses", lambda x: True)
    monkeypatch.setattr(fused, "_kernels", lambda: plain_kernels)


def normed(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, nn.GroupNorm]:
    """A picture, what is added to its channels, and a frozen norm."""
    torch.manual_seed(0)
    count, channels, height, width, groups = shape
    norm = nn.GroupNorm(groups, channels).requires_grad_(False)
    nn.init.normal_(norm.weight, 1.0, 0.2)
    nn.init.normal_(norm.bias)
    x = 2 * torch.randn(count, channels, height, width) + 3
    added = torch.randn(count, channels)
    return x.to(device, dtype), added.to(device, dtype), norm.to(device, dtype)


@pytest.mark.usefixtures("fusing")
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_gradients_of_a_norm_are_those_of_differences(shifted: bool, silu: bool):
    x, added, norm = normed((2, 6, 3, 2, 3), torch.float64)
    given = (x.requires_grad_(), added.requires_grad_()) if shifted else (x.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x, shift=None: fused.norm_silu(x, norm, shift, silu=silu), given)


@pytest.mark.usefixtures("fusing")
def test_gradients_of_a_gate_are_those_of_differences():
    both = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused.geglu, (both,))


@pytest.mark.usefixtures("fusing")
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}])
def test_a_frozen_convolution_keeps_no_picture_and_gives_its_gradient(options: dict[str, int]):
    torch.manual_seed(0)
    made: Any = nn.Conv2d
    layer: nn.Conv2d = made(4, 6, 3, **options).double().requires_grad_(False)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = fused.convolved(x, layer)
    assert kept == [layer.weight.numel()]
    torch.testing.assert_close(out, layer(x))
    (mine,), (torchs,) = torch.autograd.grad(out.square().sum(), x), torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(mine, torchs)


@pytest.mark.usefixtures("fusing")
def test_a_norm_and_its_activation_keep_the_picture_once():
    x, added, norm = normed(SHAPES[0], torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        fused.norm_silu(x.requires_grad_(), norm, added)
    assert kept.count(x.numel()) == 1
    assert sum(kept) < 1.1 * x.numel()


@pytest.mark.usefixtures("fusing")
def test_layers_that_learn_or_are_no_plain_convolutions_are_called_as_they_are():
    x = torch.randn(1, 2, 4, 4)
    learns, odd = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, padding="same").requires_grad_(False)
    ring = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular").requires_grad_(False)
    for layer in (learns, odd, ring, nn.Identity()):
        assert torch.equal(fused.convolved(x, layer), layer(x))
    fused.convolved(x, learns).sum().backward()
    assert learns.weight.grad is not None


def test_a_cpu_computes_as_ever_and_says_why():
    x, added, norm = normed(SHAPES[0], torch.float32)
    assert torch.equal(fused.norm_silu(x, norm, added), F.silu(norm(x + added[:, :, None, None])))
    assert fused.fault(torch.device("cpu")) == "they are made for CUDA, this is cpu"


COMPARED = """
import torch
from tests.compute.test_fused import SHAPES, apart, gate_apart
for shape in SHAPES:
    for dtype, limit in ((torch.float32, 4e-6), (torch.bfloat16, 0.04)):
        for silu, shifted in ((True, True), (False, False)):
            found = apart(shape, dtype, "cpu", silu=silu, shifted=shifted)
            assert max(found) < limit, (shape, dtype, silu, shifted, found)
for width in (40, 300):
    assert max(gate_apart(width, "cpu")) < 2e-6, width
"""


def apart(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, silu: bool, shifted: bool) -> list[float]:
    """Largest differences of Triton's norm and its gradient from the formulas in float64."""
    from visionpeft.compute import fused_kernels

    x, added, norm = normed(shape, dtype, device)
    x = x.contiguous(memory_format=torch.channels_last)
    shift, groups = added if shifted else None, shape[-1]
    out, *statistics = fused_kernels.normalised(x, shift, norm.weight, norm.bias, groups, norm.eps, silu=silu)
    gradient = torch.randn_like(x)
    back = fused_kernels.norm_gradient(gradient, x, norm.weight, *statistics, silu=silu)
    exact, weight, bias = x.double(), norm.weight.double(), norm.bias.double()
    exact_shift = None if shift is None else shift.double()
    wanted, *true = plain_kernels.normalised(exact, exact_shift, weight, bias, groups, norm.eps, silu=silu)
    wanted_back = plain_kernels.norm_gradient(gradient.double(), exact, weight, *true, silu=silu)
    assert out.is_contiguous(memory_format=torch.channels_last)
    pairs = ((out, wanted), (back, wanted_back))
    return [float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs]


def gate_apart(width: int, device: str) -> list[float]:
    """Largest differences of Triton's gate and its gradient from the formulas in float64."""
    from visionpeft.compute import fused_kernels

    torch.manual_seed(0)
    both, gradient = torch.randn(3, 7, 2 * width, device=device), torch.randn(3, 7, width, device=device)
    out, back = fused_kernels.gated(both), fused_kernels.gate_gradient(gradient, both)
    wanted = plain_kernels.gated(both.double()), plain_kernels.gate_gradient(gradient.double(), both.double())
    return [float((one - other).abs().max()) for one, other in zip((out, back), wanted, strict=True)]


def test_tritons_kernels_are_the_formulas_in_its_interpreter():
    pytest.importorskip("triton", reason="triton is not installed: its kernels are compared where it is")
    root = Path(__file__).parents[2]
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join([str(root), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", COMPARED], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1920, 32, 32, 32), (2, 2560, 16, 16, 32), (1, 320, 128, 128, 32)])
def test_tritons_kernels_are_the_formulas_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype):
    assert fused.fault(torch.device("cuda")) == ""
    for silu, shifted in ((True, True), (True, False), (False, True)):
        assert max(apart(shape, dtype, "cuda", silu=silu, shifted=shifted)) < (1e-5 if dtype == torch.float32 else 0.04)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("width", [40, 1280])
def test_a_gate_is_the_formula_on_a_gpu(width: int):
    assert max(gate_apart(width, "cuda")) < 1e-5

"""Seconds of kernels by curves."""

from itertools import pairwise

import pytest
import torch

from visionpeft.compute.planning.calibrate import calibrated
from visionpeft.compute.planning.hardware import GPUS, gpu_for, gpu_named, known_gpu
from visionpeft.compute.planning.ledger import Kernel
from visionpeft.compute.planning.rates import Rates, interpolated, reckoned
from visionpeft.errors import ConfigError


def test_a_curve_is_flat_below_straight_between_and_proportional_beyond():
    points = ((100.0, 1.0), (10_000.0, 4.0))
    assert interpolated(points, 1) == 1.0
    assert interpolated(points, 1000) == pytest.approx(2.0)
    assert interpolated(points, 40_000) == pytest.approx(16.0)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_large_kernels_reach_a_share_of_the_peak_and_small_ones_take_a_floor(gpu):
    rates = reckoned(gpu)
    product = Kernel("mm", "matmul", 10**13, 10**8, True, "")
    assert 0.5 < 10**13 / rates.seconds(product) / gpu.half < 1
    assert rates.seconds(Kernel("add", "moving", 0, 64, True, "")) > 1e-6
    moving = Kernel("add", "moving", 0, 10**10, False, "")
    assert 0.5 < 10**10 / rates.seconds(moving) / gpu.bandwidth < 1


def test_python_is_the_slower_of_two_on_a_gpu_and_comes_on_top_on_a_cpu():
    kernels = [Kernel("add", "moving", 0, 64, False, "")] * 100
    curves = {"moving": ((64.0, 1e-6),)}
    gpu = Rates(device="", measured=True, curves=curves, launch=1e-5, apart=True)
    assert gpu.step(kernels, recorded=True) == pytest.approx(1e-4)
    assert gpu.step(kernels) == pytest.approx(1e-3)
    cpu = Rates(device="", measured=True, curves=curves, launch=1e-5, apart=False)
    assert cpu.step(kernels) == pytest.approx(1.1e-3)


def test_gpus_are_found_by_a_part_of_their_name_or_their_memory():
    assert gpu_named("h200").name == "NVIDIA H200"
    assert gpu_named("RTX 3060").memory == 12 * 1024**3
    assert gpu_for(8 * 1024**3).name.endswith("4060")
    assert known_gpu("NVIDIA H100 80GB HBM3 ") is not None
    assert known_gpu("Some Other Card") is None
    with pytest.raises(ConfigError, match="Did you mean 'RTX 3060'"):
        gpu_named("RTX 306O")


def test_what_was_measured_is_kept_and_read(tmp_path, monkeypatch):
    from visionpeft.compute.planning import calibrate

    monkeypatch.setattr(calibrate, "_SPENT", 0.0)
    first = calibrated(torch.device("cpu"), tmp_path)
    assert first.measured
    kinds = ("matmul", "conv", "conv back", "attention", "attention back", "moving", "special", "norm")
    assert set(first.curves) == set(kinds)
    for points in first.curves.values():
        assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    assert calibrated(torch.device("cpu"), tmp_path) == first
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert calibrated(torch.device("cpu"), tmp_path).device == first.device

"""Codes of 8 and 4 bits, against closed forms, scipy's quantiles and bitsandbytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from visionpeft.compute.codes import CODES, NF4, Nf4, pair_table, pairs

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def rows(out: int = 48, columns: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def back(name: str, whole: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return CODES[name].decode(tuple(CODES[name].encode(whole).values()), dtype).view(whole.shape)


def test_int8_is_off_by_half_a_step_at_most():
    whole = rows()
    step = whole.abs().amax(1, keepdim=True) / 127
    assert ((back("int8", whole) - whole.double()).abs() <= 0.5001 * step).all()


def test_fp8_is_off_by_a_sixteenth_at_most():
    whole = rows()
    least = whole.abs().amax(1, keepdim=True) / 448 * 2.0**-10  # half of e4m3's smallest step
    assert ((back("fp8", whole) - whole.double()).abs() <= torch.maximum(whole.abs() / 16, least) * 1.0001).all()


def test_nf4_is_the_quantiles_of_a_normal_distribution():
    ends = 0.9677083  # QLoRA, appendix E: 8 values above 0, 7 below, each half evenly spaced in probability
    above, below = norm.ppf(np.linspace(ends, 0.5, 9)[:-1]), -norm.ppf(np.linspace(ends, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0.0], below]))
    assert np.allclose(values / values.max(), NF4, atol=1e-6)


def test_nf4_takes_the_nearest_value_for_its_scale():
    whole, code = rows(), Nf4()
    stored = tuple(code.encode(whole).values())
    scale = code._most(*stored[1:4], whole.numel() // 64).double()
    candidates = (scale * torch.tensor(NF4).double()).view(-1, 1, 16)
    nearest = (whole.view(-1, 64, 1).double() - candidates).abs().amin(-1)
    off = (code.decode(stored, torch.float64) - whole.view(-1, 64).double()).abs()
    assert torch.allclose(off, nearest, atol=1e-7)
    true = whole.view(-1, 64).abs().amax(1, keepdim=True)
    assert ((scale - true).abs() <= 0.5001 / 127 * (true - true.mean()).abs().max()).all()


def test_nf4_is_what_bitsandbytes_reads():
    ours = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    whole, code = rows(64, 128), Nf4()
    codes, blocks, scale, mean, table = code.encode(whole).values()
    most = code._most(blocks, scale, mean, whole.numel() // 64).view(-1)
    theirs = torch.ops.bitsandbytes.dequantize_4bit(codes.view(-1, 1), most, 64, "nf4", whole.shape, torch.float32)
    assert torch.allclose(theirs, code.decode((codes, blocks, scale, mean, table), torch.float32).view(whole.shape))
    kept, state = ours.functional.quantize_4bit(whole, blocksize=64, compress_statistics=True, quant_type="nf4")
    again = ours.functional.dequantize_4bit(kept, state)
    assert (back("nf4", whole) - whole).square().mean() <= 1.01 * (again.double() - whole).square().mean()


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_8_bits_are_torchaos(name: str):
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(128, 64, bias=False)
    whole = layer.weight.detach().clone()
    quantize_(layer, {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[name]())
    theirs = layer.weight.dequantize().float()
    mine = back(name, whole)
    # each may round a weight that lies between two steps either way; theirs has one scale in bfloat16 or a tensor
    assert (mine - whole).square().mean() <= 1.05 * (theirs - whole).square().mean()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_way_back_is_rounded_once(name: str, dtype: torch.dtype):
    whole = rows()
    exact = back(name, whole, torch.float64)
    turned = back(name, whole, dtype)
    assert turned.dtype == dtype
    room = 2.0 if name == "nf4" else 1.0  # NF4's values are rounded to the type, then their product
    assert (
        (turned.double() - exact).abs()
        <= room * torch.finfo(dtype).eps * exact.abs()
        + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        + 1e-9
    ).all()


@pytest.mark.parametrize("name", CODES)
def test_bytes_are_as_stated_and_a_row_of_zeros_stays_zero(name: str):
    whole = rows(256, 256)
    whole[3] = 0
    code = CODES[name]
    stored = code.encode(whole)
    kept = sum(tensor.numel() * tensor.element_size() for key, tensor in stored.items() if key != "table")
    assert kept <= whole.numel() * code.bits / 8 + 4 * len(whole) + 8
    assert not any(tensor.is_floating_point() for key, tensor in stored.items() if key == "codes")
    assert not code.decode(tuple(stored.values()), torch.float32).view(whole.shape)[3].any()


def test_two_codes_a_byte_come_in_order():
    codes = torch.tensor([0x0F, 0x70, 0xF0], dtype=torch.uint8)
    assert pairs(codes, pair_table(torch.device("cpu")), torch.bfloat16).tolist() == [-1, 1, 0, -1, 1, -1]


def test_a_block_of_zeros_beside_large_ones_keeps_its_signs_():
    whole = torch.ones(4, 128)
    whole[0, :64] = 0.0
    whole[0, 3] = 1e-3
    stored = CODES["nf4"].encode(whole)
    values = CODES["nf4"].decode(tuple(stored.values()), torch.float32).view(4, 128)
    assert values[0, 3] >= 0
    assert not values[0, :3].any()

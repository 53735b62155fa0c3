"""The measuring scripts of this part, run in small."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from scripts.bench import attention, quantized


def test_attentions_memory_is_tabled_and_its_growth_told(capsys: pytest.CaptureFixture[str]):
    options = argparse.Namespace(device="cpu", px=[128, 256], dtype="float32", batch=1)
    lines = attention.table(options)
    rows = [line.split(" | ") for line in lines if line.startswith("| SD")]
    assert len(rows) == 2 * 2 * 2 * 3
    assert {row[4].strip() for row in rows} == {"torch's own choice", "flash", "the formula"}
    grown = {
        line.partition(": ")[0]: float(line.partition("tokens^")[2].partition(" ")[0]) for line in lines if "^" in line
    }
    assert grown["- SD 1.5, flash"] == pytest.approx(1.0, abs=0.01)
    assert grown["- SD 1.5, the formula"] > 1.5


def test_a_bases_error_is_tabled(tmp_path: Path):
    options = argparse.Namespace(device="cpu", batches=1, size=2, whisper=None)
    lines = quantized.measured("SD 1.5 in small, random weights", tmp_path, options)
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert [row[1] for row in cells] == ["bf16", "fp8", "int8", "nf4"]
    assert all(float(row[-2]) > 0.95 for row in cells)
    assert torch.tensor([float(row[-1]) for row in cells]).sub(1).abs().max() < 0.2

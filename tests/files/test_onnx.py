"""ONNX files: they compute what PyTorch computes for any number of pictures, or they are not written."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import tiny_vit
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, MissingExtraError, OutputError
from visionpeft.files import onnx as format
from visionpeft.files.onnx import export_onnx
from visionpeft.files.onnx_check import Difference
from visionpeft.models.manage import manage

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = (32, 32)


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixel_values=pixels).logits


@pytest.fixture(scope="module")
def merged():
    """A model with an adapter that does something, merged."""
    model = tiny_vit()
    manager = manage(model)
    manager.add("one", LoraSpec(rank=2))
    with torch.no_grad():
        for parameter in manager.trainable("one")["model"]:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    manager.merge()
    return Logits(model)


def test_the_file_computes_what_the_adapted_model_computes(merged, tmp_path):
    proof = export_onnx(merged, tmp_path / "m.onnx", size=SIZE, outputs=["logits"], about={"labels": '["a"]'})
    assert proof.max_abs_error < 1e-5
    assert "agree on 6 random pictures in logits: max |error|" in str(proof)
    session = onnxruntime.InferenceSession(str(proof.path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"labels": '["a"]'}
    pixels = torch.randn(7, 3, *SIZE)
    with torch.no_grad():
        expected = merged(pixels).numpy()
        plain = Logits(tiny_vit())(pixels).numpy()
    found = session.run(["logits"], {"pixels": pixels.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - plain).max() > 0.01  # the adapter is in it


def test_a_file_that_computes_something_else_is_not_written(merged, tmp_path, monkeypatch):
    with pytest.raises(AdapterError, match="computes something else than PyTorch"):
        export_onnx(merged, tmp_path / "m.onnx", size=SIZE, outputs=["logits"], tolerance=1e-30)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(format, "difference", lambda *_: Difference(float("nan")))
    with pytest.raises(AdapterError, match="computes something else"):
        export_onnx(merged, tmp_path / "m.onnx", size=SIZE, outputs=["logits"])


def test_a_model_that_cannot_be_expressed_is_one_line(tmp_path):
    class Branching(nn.Module):
        def forward(self, pixels):
            return pixels.mean(1) if pixels.sum() > 0 else pixels.sum(1)

    with pytest.raises(AdapterError, match=r"^the model cannot be written as ONNX: .*$"):
        export_onnx(Branching(), tmp_path / "m.onnx", size=SIZE, outputs=["y"])
    assert logging.root.manager.disable == 0


def test_names_and_existing_files_are_minded(merged, tmp_path):
    with pytest.raises(OutputError, match=r"end in \.onnx; name it m\.onnx"):
        export_onnx(merged, tmp_path / "m.bin", size=SIZE, outputs=["logits"])
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(OutputError, match="exists"):
        export_onnx(merged, tmp_path / "m.onnx", size=SIZE, outputs=["logits"])


def test_a_missing_package_says_what_to_install(merged, tmp_path, monkeypatch):
    monkeypatch.setattr(format, "find_spec", lambda name: None if name == "onnxruntime" else 1)
    with pytest.raises(MissingExtraError, match=r"package onnxruntime: pip install 'visionpeft\[onnx\]'"):
        export_onnx(merged, tmp_path / "m.onnx", size=SIZE, outputs=["logits"])


def test_a_model_too_large_for_one_file_is_refused(tmp_path):
    large = nn.Linear(1, 1)
    large.register_buffer("much", torch.empty(600_000_000, device="meta"))
    with pytest.raises(AdapterError, match=r"has 2\.4 GB: one ONNX file holds at most 2 GB"):
        export_onnx(large, tmp_path / "m.onnx", size=SIZE, outputs=["y"])

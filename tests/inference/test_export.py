"""ONNX files of classifiers and detectors: every family of detectors, and prompts, which no weight can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_vision import DETECTORS, available
from tests.vision_place import write_base
from visionpeft.adapters.spec import AdapterSpec, LoraSpec, VptSpec
from visionpeft.files.onnx import export_onnx
from visionpeft.files.onnx_check import difference
from visionpeft.inference.about import ClassifierAbout, DetectorAbout
from visionpeft.inference.detector import ScoresModule
from visionpeft.inference.export import export_model
from visionpeft.inference.predict import open_model
from visionpeft.models.heads import new_heads
from visionpeft.models.manage import manage
from visionpeft.models.vision import VisionTask, load_vision

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

LABELS = ("one", "two")


def written(place: Path, name: str, spec: AdapterSpec, size: tuple[int, int], task: VisionTask = "detect") -> Path:
    """An adapter's file of a tiny base, with values that do something."""
    base = load_vision(write_base(place / "base", name), task=task, image_size=size)
    told = {"labels": LABELS, "preprocessing": base.preprocessing}
    about = DetectorAbout(**told) if task == "detect" else ClassifierAbout(**told, kind="binary")
    manager = manage(base)
    manager.add("a", spec, heads=new_heads(base, LABELS, seed=0), about=about.model_dump(mode="json"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in manager.parameters("a").items():
            size = 0.1 if "lora" in name or "prompts" in name else 1.0  # heads: no ties
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return manager.capture("a").save(place / "a.safetensors")


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_are_in_the_file(tmp_path: Path, deep: bool):
    adapter = written(tmp_path, "vit", VptSpec(tokens=3, deep=deep), (32, 32), "classify")
    proof = export_model(adapter, tmp_path / "m.onnx")
    assert proof.max_abs_error < 1e-4
    model = open_model(adapter)
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(proof.path), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"pixels": pixels.numpy()})[0]
    with torch.no_grad():
        expected = model.base.model(pixel_values=pixels).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


QUICK = {"yolos", "rf_detr"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in DETECTORS])
def test_every_detector_is_exported(tmp_path: Path, name: str):
    if not available(name):
        pytest.skip("not in this transformers")
    side = 128 if name.startswith("deformable") else 64
    adapter = written(tmp_path, name, LoraSpec(rank=2, targets="attention"), (side, side))
    assert export_model(adapter, tmp_path / "m.onnx").max_abs_error < 1e-3


@pytest.mark.slow
def test_the_embedded_detector_is_exported_as_a_rectangle_and_every_part_of_it_is_checked(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    base = load_vision("visionpeft/emoji-detr", task="detect", image_size=(96, 128))
    module = ScoresModule(base).eval()
    proof = export_onnx(module, tmp_path / "m.onnx", size=(96, 128), outputs=("scores", "boxes"))
    assert proof.inputs_checked == 6
    assert proof.ranked == 6 * 100
    assert proof.max_abs_error < 1e-4
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    for part in ("backbone", "encoder.fpn_blocks", "decoder_input_proj", "decoder.query_pos_head"):
        broken = onnx.load(proof.path)
        tensor = next(one for one in broken.graph.initializer if part in one.name and len(one.dims) > 1)
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.2), tensor.name))
        assert difference(module, broken, pixels).error > 1e-3, part

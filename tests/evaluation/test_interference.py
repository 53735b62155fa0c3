"""The report on interference: known subspaces, signs and norms, and its picture."""

import json

import pytest
import torch

from tests.adapters.test_blend import made
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError
from visionpeft.evaluation.interference import interference
from visionpeft.evaluation.interference_map import heat_map, save_heat_map


def axis(column, row, size=1.0):
    """ΔW with one element, as LoRA of rank 1."""
    down, up = torch.zeros(1, 5), torch.zeros(4, 1)
    down[0, row], up[column, 0] = 1.0, size
    tensors = {"unet.x.lora_A.weight": down, "unet.x.lora_B.weight": up}
    return Adapter({"unet": LoraSpec(targets=("x",), rank=1)}, tensors)


def pair(first, second):
    report = interference({"a": (first, 1.0), "b": (second, 1.0)}, rank=1)
    return report, report.layers[0].pairs[0]


def test_adapters_that_touch_nothing_in_common():
    report, found = pair(axis(0, 0), axis(1, 1))
    assert (found.written, found.read, found.angle, found.conflict) == (0, 0, 90, 0)
    assert report.layers[0].lost["svd"] == pytest.approx(0.5)
    assert "give a higher rank" in report.advice


def test_adapters_that_are_opposite_or_the_same():
    report, found = pair(axis(0, 0), axis(0, 0, -1.0))
    assert (found.written, found.read, found.conflict) == (1, 1, 1)
    assert "push against each other (100%" in report.advice
    report, found = pair(axis(0, 0), axis(0, 0, 2.0))
    assert (found.conflict, found.ratio) == (0, 0.5)
    assert found.angle == pytest.approx(0, abs=1e-5)
    assert "mostly agree" in report.advice
    assert "'b' is 8.0 times as strong as 'a'" in pair(axis(0, 0), axis(0, 0, 8.0))[0].advice


def test_losses_are_those_of_the_blends_and_files_are_written(tmp_path):
    given = {"a": (made(2, 1), 0.8), "b": (made(3, 2), 0.5)}
    report = interference(given, rank=2, methods=("svd", "cat", "ties"))
    values = torch.linalg.svdvals(
        sum(w * (a.tensors["unet.x.lora_B.weight"] @ a.tensors["unet.x.lora_A.weight"]) for a, w in given.values())
    )
    lost = float(values[2:].square().sum() / values.square().sum())
    assert report.layers[0].lost["svd"] == pytest.approx(lost, rel=1e-4)
    assert report.layers[0].lost["svd"] == pytest.approx(report.layers[0].lost["cat"])
    assert 0 < report.lost("ties") < 1
    told = json.loads(report.save(tmp_path / "report.json").read_text())
    assert [layer["place"] for layer in told["layers"]] == ["unet.x", "unet.y"]
    assert told["advice"] == report.advice
    assert save_heat_map(report, tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert len(set(heat_map(report).getdata())) > 10


def test_faults_are_named():
    with pytest.raises(AdapterError, match="at least two"):
        interference({"a": (made(), 1.0)}, rank=1)
    with pytest.raises(AdapterError, match="No layer is changed by two of a, b"):
        interference({"a": (made(places=("x",)), 1.0), "b": (made(places=("y",)), 1.0)}, rank=1)

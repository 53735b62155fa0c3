"""A file that ranks near-equal places otherwise computes the same; one that computes anything else is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from visionpeft.errors import AdapterError  # noqa: E402
from visionpeft.files.onnx import export_onnx  # noqa: E402
from visionpeft.files.onnx_check import difference  # noqa: E402

SIDE, CHOSEN = 6, 5
PIXELS = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class Ranking(nn.Module):
    """A detector's choice of queries: the best-ranked places of a picture, and what it says of them."""

    def __init__(self, ranks: Tensor, *, scale: float = 1.0) -> None:
        super().__init__()
        self.ranks = nn.Buffer(ranks)
        self.scale = nn.Buffer(torch.tensor(scale))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        said = pixels.flatten(2).transpose(1, 2) * self.scale
        scores = 0 * said.mean(-1) + self.ranks
        best, places = torch.topk(scores, CHOSEN, dim=1)
        return best, said.gather(1, places.unsqueeze(-1).expand(-1, -1, 3)) + best.unsqueeze(-1)


def pairs() -> Tensor:
    """Ranks of the places in pairs that are nearly equal; the last that is chosen is of one whose other is not."""
    ranks = torch.arange(SIDE * SIDE, dtype=torch.float32).flip(0) / SIDE
    ranks[1::2] = ranks[::2] - 1e-6
    return ranks


def swapped() -> Tensor:
    """The same with each pair the other way round: what rounding in another order may come to."""
    ranks = pairs()
    return ranks.unflatten(0, (-1, 2)).flip(1).flatten()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model as ONNX."""
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    proof = export_onnx(Ranking(pairs()).eval(), path, size=(SIDE, SIDE), outputs=["scores", "said"])
    assert (proof.reordered, proof.ranked) == (0, 6 * CHOSEN)
    assert "another order" not in str(proof)
    return onnx.load(path)


def test_near_equal_places_may_change_their_order(file: Any):
    module = Ranking(swapped())
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": PIXELS.numpy()})[1]
    assert np.abs(found - module(PIXELS)[1].numpy()).max() > 1  # slot by slot: other queries, one of them not in both
    same = difference(module, file, PIXELS)
    assert same.error < 1e-5
    assert (same.reordered, same.ranked) == (2 * CHOSEN, 2 * CHOSEN)


@pytest.mark.parametrize("step", [2e-3, 0.1])
def test_a_choice_that_is_not_among_the_best_is_an_error(file: Any, step: float):
    ranks = pairs()
    ranks[1] += step  # before its neighbour, and by more than rounding
    assert difference(Ranking(ranks), file, PIXELS).error > 1e-3


def test_what_is_said_of_the_chosen_places_must_agree(file: Any):
    assert difference(Ranking(swapped(), scale=1.01), file, PIXELS).error > 1e-3


def test_a_graph_that_takes_the_worst_is_found_out(file: Any):
    broken = onnx.ModelProto()
    broken.CopyFrom(file)
    (node,) = [node for node in broken.graph.node if node.op_type == "TopK"]
    attributes = [one for one in node.attribute if one.name != "largest"]
    del node.attribute[:]
    node.attribute.extend([*attributes, onnx.helper.make_attribute("largest", 0)])
    assert difference(Ranking(pairs()), broken, PIXELS).error > 1


def test_not_a_number_is_the_largest_error(file: Any, tmp_path: Path):
    ranks = pairs()
    ranks[3] = float("nan")
    assert np.isnan(difference(Ranking(ranks), file, PIXELS).error)
    with pytest.raises(AdapterError, match=r"max \|error\| nan"):
        export_onnx(Ranking(ranks), tmp_path / "m.onnx", size=(SIDE, SIDE), outputs=["scores", "said"])
    assert list(tmp_path.iterdir()) == []

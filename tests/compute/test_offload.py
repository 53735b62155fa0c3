import gc
import weakref

import pytest
import torch
from torch import nn

from visionpeft.compute import offload
from visionpeft.compute.lean import Lean
from visionpeft.compute.thrift import MemoryConfig, Thrift

CPU = torch.device("cpu")


class ToyLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        inner = torch.tanh(self.lift(x))
        self.seen.append(weakref.ref(inner))
        return x + self.drop(inner * inner)


class EncoderLayer(ToyLayer):
    """Named as a block."""


def toy(count=4):
    torch.manual_seed(0)
    return nn.Sequential(*(EncoderLayer() for _ in range(count)))


def learned(model, seed=1):
    model.zero_grad()
    torch.manual_seed(seed)
    x = torch.ones(3, 8, requires_grad=True)
    out = model(x)
    gc.collect()
    alive = [any(seen() is not None for seen in layer.seen) for layer in model]
    torch.manual_seed(99)  # as another step may have left it
    out.sum().backward()
    return alive, [x.grad, out.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize(("thrift", "left"), [
    (Thrift(), [True] * 4),
    (Thrift(memory=MemoryConfig(offload=1.0)), [False] * 4),
    (Thrift(memory=MemoryConfig(offload=0.5)), [False, True, False, True]),
    (Thrift(1.0), [False] * 4),
])  # fmt: skip
def test_activations_are_gone_between_the_passes_and_dropout_is_drawn_the_same(monkeypatch, thrift, left):
    monkeypatch.setattr(offload, "_LEAST", 1)
    _, plain = learned(toy())
    model = toy()
    Lean(model, CPU, thrift)
    for _ in range(2):
        for layer in model:
            layer.seen.clear()
        alive, found = learned(model)
        assert alive == left
        assert all(map(torch.equal, plain, found))


def test_only_the_last_stash_is_still_on_the_device(monkeypatch):
    monkeypatch.setattr(offload, "_LEAST", 1)
    model = toy()
    lean = Lean(model, CPU, Thrift(memory=MemoryConfig(offload=1.0)))
    out = model(torch.ones(3, 8, requires_grad=True))
    stash, here = lean._offloading._last, []
    while stash is not None:
        here.append({kept.here is not None for kept in stash.kept.values()})
        stash = stash.before
    assert here == [{True}, {False}, {False}, {False}]
    out.sum().backward()
    assert lean._offloading._last is None


def test_memory_is_used_again_and_a_tensor_is_copied_once(monkeypatch):
    monkeypatch.setattr(offload, "_LEAST", 1)
    taken = []
    monkeypatch.setattr(offload, "pinned", lambda n, d: taken.append(n) or torch.empty(n, dtype=torch.uint8))
    model = toy()
    Lean(model, CPU, Thrift(memory=MemoryConfig(offload=1.0)))
    learned(model)
    first = len(taken)
    # of each block: its input (once, though kept twice), tanh's output (once, though kept three times), dropout's mask
    assert first <= 4 * 4
    learned(model)
    assert len(taken) == first


def test_a_graph_that_is_asked_twice_is_refused(monkeypatch):
    monkeypatch.setattr(offload, "_LEAST", 1)
    model = toy()
    Lean(model, CPU, Thrift(memory=MemoryConfig(offload=1.0)))
    out = model(torch.ones(3, 8, requires_grad=True)).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="asked for once"):
        out.backward()


def test_dropout_that_is_computed_again_cannot_be_recorded(monkeypatch):
    model = toy()
    Lean(model, CPU, Thrift(1.0))
    monkeypatch.setattr("visionpeft.compute.lean.recording", lambda device: True)
    with pytest.raises(RuntimeError, match="has dropout, whose draws a recorded step cannot repeat"):
        model(torch.ones(3, 8))
    model.eval()(torch.ones(3, 8))

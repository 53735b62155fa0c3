"""The joined operation against the layer and its branch one after the other, and against float64."""

import pytest
import torch
from torch import nn

from visionpeft.adapters import layers
from visionpeft.adapters.joined import low_rank_linear
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import DoraSpec, LoraSpec
from visionpeft.models.family import Family, Targeting


def pieces(*shape, bias=True, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(*shape, 12, generator=rng), torch.randn(20, 12, generator=rng),
        torch.randn(20, generator=rng) if bias else None, torch.randn(3, 12, generator=rng),
        torch.randn(20, 3, generator=rng),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 7), (2, 3, 4)])
def test_it_is_the_sum_and_so_are_its_gradients(shape, bias):
    x, weight, shift, down, up = pieces(*shape, bias=bias)
    learned = [tensor.clone().requires_grad_() for tensor in (x, down, up)]
    out = low_rank_linear(learned[0], weight, shift, learned[1], learned[2], 0.7, torch.float32)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * pull).sum().backward()
    exact = [tensor.double().requires_grad_() for tensor in (x, down, up)]
    wanted = exact[0] @ weight.double().T + 0.7 * exact[0] @ exact[1].T @ exact[2].T
    wanted = wanted if shift is None else wanted + shift.double()
    (wanted * pull.double()).sum().backward()
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(learned, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


def test_types_are_those_of_autocast():
    x, weight, bias, down, up = pieces(4)
    x, down, up = (tensor.requires_grad_() for tensor in (x, down, up))
    out = low_rank_linear(x, weight, bias, down, up, 1.0, torch.bfloat16)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert x.grad.dtype == down.grad.dtype == up.grad.dtype == torch.float32


def test_a_frozen_input_takes_no_gradient():
    x, weight, bias, down, up = pieces(4)
    up.requires_grad_()
    low_rank_linear(x, weight, bias, down, up, 1.0, torch.float32).sum().backward()
    assert x.grad is None
    assert up.grad is not None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def managed(net):
    return AdapterManager(
        {"model": net}, Family("net", {"model": Targeting(semantic={})}, lambda model: {"model": model})
    )


SPECS = {
    "lora": (LoraSpec(rank=3, alpha=2, targets="re:.*"), 2),
    "pissa": (LoraSpec(rank=3, init="pissa", targets="re:.*"), 2),
    "dropout": (LoraSpec(rank=3, dropout=0.5, targets="re:.*"), 0),
    "dora": (DoraSpec(rank=3, targets="re:.*"), 0),
}


@pytest.mark.parametrize("name", SPECS)
def test_only_what_it_can_do_is_joined_and_the_same_comes_out(name, monkeypatch):
    spec, joined = SPECS[name]
    torch.manual_seed(0)
    net = Net()
    manager = managed(net)
    manager.add("a", spec)
    for parameter in manager.parameters("a").values():
        nn.init.normal_(parameter, std=0.3)
    net.train()
    calls, whole = [], layers.low_rank_linear
    monkeypatch.setattr(layers, "low_rank_linear", lambda *given: calls.append(1) or whole(*given))
    x = torch.randn(6, 12)

    def gradients():
        for parameter in manager.parameters("a").values():
            parameter.grad = None
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        out.float().square().sum().backward()
        return out, [parameter.grad.clone() for parameter in manager.parameters("a").values()]

    out, mine = gradients()
    assert len(calls) == joined
    monkeypatch.setattr(layers, "lora_term", lambda *given: None)
    plain, theirs = gradients()
    torch.testing.assert_close(out.float(), plain.float(), rtol=0.03, atol=0.05)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * float(b.abs().max()))


def test_without_autocast_the_branch_is_float32(monkeypatch):
    net = Net()
    managed(net).add("a", LoraSpec(rank=2, targets="re:.*"))
    monkeypatch.setattr(layers, "low_rank_linear", lambda *given: pytest.fail("joined without autocast"))
    assert net(torch.randn(2, 12)).dtype == torch.float32

"""Copies of the masters in half precision: what is computed with them, what comes back, and when they are not used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.adapters.test_joined import managed
from visionpeft.adapters import layers
from visionpeft.adapters.layers import Branch
from visionpeft.adapters.spec import DoraSpec, LohaSpec, LoraSpec
from visionpeft.compute.precision import BF16, FP32
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import StepOutput
from visionpeft.training.trainer import Trainer


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(16, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.conv(x).flatten(1))))


def prepared(precision, spec, dtype):
    """A net, its adapter and a trainer that serves it."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    manager = managed(net)
    manager.add("a", spec)
    for parameter in manager.parameters("a").values():
        nn.init.normal_(parameter, std=0.3)
    trainer = Trainer(manager.trainable("a"), TrainConfig(steps=9, ema=0.5), precision, 1)
    trainer.serve([part for part in net.modules() if isinstance(part, Branch)], autocast=False)
    return net.train(), trainer


def loss_of(net, number, dtype=torch.bfloat16):
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(number))
    out = net(x.to(dtype)).float()
    return StepOutput(out.square().sum(), torch.tensor(5.0))


LORA = LoraSpec(rank=3, alpha=2, targets="re:.*")


def test_gradients_are_those_of_float32_to_half_precision():
    half, served = prepared(BF16, LORA, torch.bfloat16)
    whole, plain = prepared(FP32, LORA, torch.float32)
    for net, trainer, dtype in ((half, served, torch.bfloat16), (whole, plain, torch.float32)):
        trainer.begin(0)
        for number in range(2):
            trainer.backward(loss_of(net, number, dtype))
    assert plain.copies is None
    for (name, mine), exact in zip(served.parameters.items(), plain.parameters.values(), strict=True):
        assert F.cosine_similarity(mine.grad.flatten(), exact.grad.flatten(), dim=0) > 0.99, name
        torch.testing.assert_close(mine.grad.norm(), exact.grad.norm(), rtol=0.05, atol=0.0)


def test_no_product_is_made_with_a_master_and_nothing_is_kept_of_a_step():
    net, trainer = prepared(BF16, LORA, torch.bfloat16)
    parts = [part for part in net.modules() if isinstance(part, Branch)]
    trainer.begin(0)
    trainer.backward(loss_of(net, 0))
    for part in parts:
        assert all(copy.dtype == torch.bfloat16 and copy.grad is None for copy in part.copies.values())
        assert all(torch.equal(part.copies[name], p.bfloat16()) for name, p in part.parts.items())
    once = trainer.gradients.gradients.clone()
    trainer.backward(loss_of(net, 0))
    assert torch.equal(trainer.gradients.gradients, 2 * once)
    trainer.update()
    trainer.begin(1)
    assert not trainer.gradients.gradients.any()
    assert all(torch.equal(part.copies[name], p.bfloat16()) for part in parts for name, p in part.parts.items())


def test_a_weight_that_nothing_reaches_takes_no_gradient_of_a_former_step():
    net, trainer = prepared(BF16, LORA, torch.bfloat16)
    trainer.begin(0)
    trainer.backward(loss_of(net, 0))
    trainer.begin(1)
    first = net.first(torch.ones(2, 16, dtype=torch.bfloat16)).float().sum()
    trainer.backward(StepOutput(first, torch.tensor(2.0)))
    reached = {name: bool(p.grad.any()) for name, p in trainer.parameters.items()}
    assert sum(reached.values()) == 2


def test_outside_of_training_the_masters_act():
    net, trainer = prepared(BF16, LORA, torch.bfloat16)
    plain, _ = prepared(FP32, LORA, torch.bfloat16)
    trainer.begin(0)
    trainer.weights.flat.mul_(2.0)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.requires_grad:
                parameter.mul_(2.0)
    x = torch.randn(5, 3, 4, 4).bfloat16()
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert not torch.equal(net.train()(x), plain(x)), (
        "in training the copies act, which are renewed at a step's beginning"
    )


OTHERS = {
    "loha": LohaSpec(rank=2, targets="re:.*"),
    "dora": DoraSpec(rank=2, targets="re:.*"),
    "pissa": LoraSpec(rank=2, init="pissa", targets="re:.*"),
    "dropout": LoraSpec(rank=2, dropout=0.5, targets="re:.*"),
}


@pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS)
def test_other_branches_multiply_in_the_same_type_without_autocast(spec, monkeypatch):
    net, trainer = prepared(BF16, spec, torch.bfloat16)
    kinds, whole = [], layers.F.linear
    monkeypatch.setattr(layers.F, "linear", lambda x, w, b=None: (out := whole(x, w, b), kinds.append(out.dtype))[0])
    trainer.begin(0)
    trainer.backward(loss_of(net, 0))
    assert kinds
    assert set(kinds) == {torch.bfloat16}
    assert trainer.gradients.norm() > 0

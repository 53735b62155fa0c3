import math

import pytest
import torch
from torch import nn

from visionpeft.training.gradients import GradientBuffer, Watch
from visionpeft.training.task import StepOutput


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def errors(net, x, y):
    return (net(x) - y).square().sum(1)


@pytest.mark.parametrize("pieces", [[7], [3, 4], [1, 1, 5]])
def test_any_splitting_gives_the_gradient_of_the_mean(pieces):
    net, x, y = model(), torch.randn(7, 4), torch.randn(7, 2)
    exact = model().double()
    errors(exact, x.double(), y.double()).mean().backward()
    buffer = GradientBuffer(list(net.parameters()))
    buffer.clear()
    for part_x, part_y in zip(x.split(pieces), y.split(pieces), strict=True):
        out = StepOutput(errors(net, part_x, part_y).sum(), torch.tensor(float(len(part_x))))
        out.loss_sum.backward()
        buffer.note(out)
    buffer.divide()
    for parameter, wanted in zip(net.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(parameter.grad.double(), wanted.grad, atol=1e-6)
    assert float(buffer.loss_sum / buffer.count) == pytest.approx(errors(net, x, y).mean().item(), rel=1e-6)
    whole = torch.cat([p.grad.flatten() for p in exact.parameters()])
    assert float(buffer.norm()) == pytest.approx(float(whole.norm()), rel=1e-6)


def test_a_new_step_begins_with_nothing():
    net = model()
    buffer = GradientBuffer(list(net.parameters()))
    net(torch.ones(1, 4)).sum().backward()
    assert buffer.norm() > 0
    buffer.clear()
    assert not buffer.flat.any()
    assert all(not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("limit", "length"), [(1.0, 1.0), (100.0, 5.0)])
def test_clipping_scales_down_only(limit, length):
    parameter = nn.Parameter(torch.zeros(2))
    buffer = GradientBuffer([parameter])
    parameter.grad.copy_(torch.tensor([3.0, 4.0]))
    buffer.clip(buffer.norm(), limit)
    assert torch.allclose(parameter.grad, torch.tensor([0.6, 0.8]) * length)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_watch_keeps_the_first_bad_step(bad):
    watch = Watch(torch.device("cpu"))
    watch.look(torch.tensor(0), torch.tensor(1.0), torch.tensor(2.0))
    assert watch.first() is None
    watch.look(torch.tensor(3), torch.tensor(1.0), torch.tensor(bad))
    watch.look(torch.tensor(4), torch.tensor(bad), torch.tensor(1.0))
    watch.look(torch.tensor(5), torch.tensor(1.0), torch.tensor(1.0))
    assert watch.first() == 3

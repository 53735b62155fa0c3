import importlib.util
import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from visionpeft.errors import ConfigError, MissingExtraError
from visionpeft.training.ema import Ema
from visionpeft.training.flat import FlatWeights
from visionpeft.training.optim import OPTIMIZERS, OptimizerConfig, build_optimizer, rates_of
from visionpeft.training.schedules import SCHEDULES, schedule_factor


def test_adamw_is_its_formula_in_float64():
    start, rate, decay, (b1, b2), eps = 2.0, 0.1, 0.03, (0.8, 0.95), 1e-6
    parameter = nn.Parameter(torch.tensor([start]))
    config = OptimizerConfig(weight_decay=decay, betas=(b1, b2), eps=eps)
    optimizer = build_optimizer(config, {"unet": [parameter]}, {"unet": rate})
    m = v = 0.0
    expected = start
    for step in range(1, 8):
        gradient = math.sin(step)
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        expected -= rate * decay * expected
        expected -= rate * (m / (1 - b1**step)) / (math.sqrt(v / (1 - b2**step)) + eps)
    assert parameter.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill_at_each_components_rate(name):
    if name == "adamw8bit":
        pytest.skip("needs a GPU")
    moved, still = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    optimizer = build_optimizer(
        OptimizerConfig(name=name, weight_decay=0.0), {"unet": [moved], "text": [still]}, {"unet": 0.1, "text": 0.0}
    )
    for _ in range(3):
        optimizer.zero_grad()
        (moved.square().sum() + still.square().sum()).backward()
        optimizer.step()
    assert (moved < 1).all()
    assert torch.equal(still, torch.ones(4))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_says_what_to_install():
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        build_optimizer(OptimizerConfig(name="adamw8bit"), {"a": [nn.Parameter(torch.ones(1))]}, {"a": 0.1})


def test_settings_name_the_nearest_optimizer_and_accept_a_plain_name():
    assert OptimizerConfig.model_validate("sgd").name == "sgd"
    with pytest.raises(ValidationError, match="Did you mean 'adamw'"):
        OptimizerConfig(name="adamv")
    with pytest.raises(ValidationError, match=r"betas lie in \[0, 1\)"):
        OptimizerConfig(betas=(0.9, 1.0))


def test_rates_by_component():
    assert rates_of(0.1, ["unet", "text_encoder"]) == {"unet": 0.1, "text_encoder": 0.1}
    assert rates_of({"text_encoder": 1.0, "unet": 2.0}, ["unet", "text_encoder"]) == {"unet": 2.0, "text_encoder": 1.0}
    with pytest.raises(ConfigError, match="Did you mean 'text_encoder'"):
        rates_of({"unet": 1.0, "text_encodr": 1.0}, ["unet", "text_encoder"])
    with pytest.raises(ConfigError, match="no rate for text_encoder"):
        rates_of({"unet": 1.0}, ["unet", "text_encoder"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_then_never_rise_again(name):
    factors = [schedule_factor(name, step, 50, warmup=9) for step in range(50)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(a >= b >= 0 for a, b in pairwise(factors[9:]))


def test_schedules_at_known_places():
    assert schedule_factor("linear", 25, 100, 0) == pytest.approx(0.75)
    assert schedule_factor("cosine", 50, 100, 0) == pytest.approx(0.5)
    assert schedule_factor("cosine", 25, 100, 0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert schedule_factor("constant", 99, 100, 0) == 1.0


def test_the_average_is_its_recursion_and_swaps_exactly():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = Ema(FlatWeights({"unet": [parameter]}), decay=0.5)
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for step in range(20):
        parameter.data.mul_(1.1)
        ema.begin(step)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach().double()
    assert torch.allclose(ema.averages[0].double(), expected, rtol=1e-5)
    before = parameter.detach().clone()
    with ema.swapped():
        assert torch.equal(parameter, ema.averages[0])
    assert torch.equal(parameter, before)


def test_a_rate_holds_for_the_parts_of_what_it_names():
    groups = ["model.layers.1", "model.layers.10", "heads"]
    rates = rates_of({"model": 1.0, "model.layers.1": 2.0, "heads": 3.0}, groups)
    assert rates == {"model.layers.1": 2.0, "model.layers.10": 1.0, "heads": 3.0}
    with pytest.raises(ConfigError, match="'mod' is not trained"):
        rates_of({"mod": 1.0, "model": 1.0, "heads": 1.0}, groups)


def test_momentum_begins_at_zero_even_if_the_first_step_is_skipped():
    mine, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    config = OptimizerConfig(name="sgd", momentum=0.9, weight_decay=0.0)
    optimizer = build_optimizer(config, {"a": [mine]}, {"a": 0.1})
    assert torch.equal(optimizer.state[mine]["momentum_buffer"], torch.zeros(2))
    plain = torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for step in range(4):
        for parameter, steps in ((mine, optimizer), (theirs, plain)):
            parameter.grad = torch.tensor([0.5, float(step)])
            steps.step()
    torch.testing.assert_close(mine, theirs)

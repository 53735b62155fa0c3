"""Parameters in one tensor: the same weights, the same steps to the last bit, the same checkpoints."""

import pytest
import torch
from torch import nn

from visionpeft.compute.precision import FP32
from visionpeft.training.flat import FlatWeights, Layout
from visionpeft.training.moments import moments_of
from visionpeft.training.optim import OptimizerConfig, build_optimizer
from visionpeft.training.settings import TrainConfig
from visionpeft.training.task import StepOutput
from visionpeft.training.trainer import Trainer

SHAPES = {"unet": [(16, 40), (40, 16), (3,), (), (5, 4, 3, 3)], "text": [(7, 3), (1,)]}
RATES = {"unet": 0.01, "text": 0.003}


def parameters(seed=0):
    rng = torch.Generator().manual_seed(seed)
    made = {name: [nn.Parameter(torch.randn(s, generator=rng)) for s in shapes] for name, shapes in SHAPES.items()}
    kernel = made["unet"][-1]
    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return made


def test_parameters_stay_themselves_and_move_into_one_tensor():
    made = parameters()
    before = [[p.detach().clone() for p in group] for group in made.values()]
    strides = [[p.stride() for p in group] for group in made.values()]
    flat = FlatWeights(made)
    assert [[p.stride() for p in group] for group in made.values()] == strides
    for group, old in zip(made.values(), before, strict=True):
        assert all(torch.equal(p, o) for p, o in zip(group, old, strict=True))
        assert all(p.untyped_storage().data_ptr() == flat.flat.untyped_storage().data_ptr() for p in group)
        assert all(p.data_ptr() % 32 == flat.flat.data_ptr() % 32 for p in group), "slices begin where kernels like it"
    flat.flat.fill_(2.0)
    assert all((p == 2.0).all() for p in made["text"])
    assert flat.flat.numel() == sum(-(-p.numel() // 8) * 8 for group in made.values() for p in group)


def test_a_layout_is_read_at_any_place_of_a_buffer():
    tensors = [torch.randn(3, 2), torch.randn(5)]
    layout = Layout(tensors)
    whole = torch.arange(float(layout.size + 3))
    (first, second), (again, _) = layout.views(whole[3:]), layout.views(whole)
    assert first[0, 0] == 3
    assert again[0, 0] == 0
    assert torch.equal(second, whole[11:16])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_the_optimizer_moves_flat_weights_as_it_moves_each(name, decay):
    mine, theirs = parameters(), parameters()
    config = OptimizerConfig(name=name, weight_decay=decay)
    settings = TrainConfig(steps=9, learning_rate=RATES, optimizer=config, max_grad_norm=None)
    trainer = Trainer(mine, settings, FP32, 1)
    plain = build_optimizer(config, theirs, RATES)
    rng = torch.Generator().manual_seed(3)
    for step in range(6):
        trainer.begin(step)
        for p, q in zip(flattened(mine), flattened(theirs), strict=True):
            q.grad = torch.empty_like(q).copy_(torch.randn(q.shape, generator=rng))
            p.grad.copy_(q.grad)
        trainer.gradients.count.fill_(1.0)
        trainer.update()
        plain.step()
    for p, q in zip(flattened(mine), flattened(theirs), strict=True):
        same(p, q)
    kept = moments_of(trainer.optimizer, trainer.weights)
    for number, values in plain.state_dict()["state"].items():
        assert set(kept[number]) == set(values)
        for key, value in values.items():
            same(kept[number][key], value)


def same(mine, theirs):
    """To the last bit; where a CPU's vectors do not fill up, torch itself rounds the rest of a tensor otherwise."""
    if theirs.numel() % 16 == 0:
        assert torch.equal(mine, theirs)
    torch.testing.assert_close(mine, theirs, rtol=3e-7, atol=3e-7)


def test_a_checkpoint_goes_over_from_one_to_the_other():
    settings = TrainConfig(steps=9, learning_rate=RATES, ema=0.9)
    straight, first = Trainer(parameters(), settings, FP32, 1), Trainer(parameters(), settings, FP32, 1)
    for step in range(2):
        for trainer in (straight, first):
            advance(trainer, step)
    second = Trainer(parameters(5), settings, FP32, 1)
    copies = {name: tensor.clone() for name, tensor in first.tensors().items()}
    assert copies["optimizer.4.exp_avg"].shape == (5, 4, 3, 3), "a checkpoint knows parameters, not how they lie"
    second.restore(copies, first.numbers())
    for step in (2, 3):
        for trainer in (straight, second):
            advance(trainer, step)
    assert all(torch.equal(second.tensors()[name], tensor) for name, tensor in straight.tensors().items())


def test_between_the_slices_nothing_ever_is():
    made = parameters()
    trainer = Trainer(made, TrainConfig(steps=9, learning_rate=RATES, ema=0.5), FP32, 1)
    for step in range(3):
        advance(trainer, step)
    used = torch.zeros_like(trainer.weights.flat, dtype=torch.bool)
    for view in trainer.weights.layout.views(used):
        view.fill_(True)
    assert not trainer.weights.flat[~used].any()
    assert trainer.weights.flat[used].all()


def flattened(groups):
    return [p for group in groups.values() for p in group]


def advance(trainer, step):
    trainer.begin(step)
    loss = sum((p * p.detach().roll(step) + p.square()).sum() for p in trainer.parameters.values())
    trainer.backward(StepOutput(loss, torch.tensor(3.0)))
    trainer.update()

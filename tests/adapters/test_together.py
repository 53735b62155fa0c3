"""Layers that read the same input, multiplied together: the same values and gradients, and the model as it was."""

import copy

import pytest
import torch
from torch import nn

from tests.adapters.test_joined import managed
from tests.tiny import tiny_sd1, tiny_sdxl
from visionpeft.adapters import together
from visionpeft.adapters.layers import Branch
from visionpeft.adapters.spec import LoraSpec
from visionpeft.adapters.together import adjoin, outputs
from visionpeft.models.joined_attention import JoinedAttention, join_attention
from visionpeft.models.manage import manage

SPEC = LoraSpec(rank=3, alpha=2, targets="re:.*")


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (
            nn.Linear(12, 8, bias=False),
            nn.Linear(12, 8, bias=False),
            nn.Linear(12, 6, bias=False),
        )

    def layers(self):
        return self.q, self.k, self.v

    def forward(self, x):
        return torch.cat(outputs(self.layers(), x), dim=-1)


def prepared(module, manager, seed=0):
    """Let an adapter compute in float32 as it would in a half-precision run, with values of its own."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in manager.parameters("a").values():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.2)
    for part in module.modules():
        if isinstance(part, Branch):
            part.computes = torch.float32
    return module.train()


def three(spec=SPEC):
    torch.manual_seed(0)
    net = Three()
    manager = managed(net)
    manager.add("a", spec)
    return prepared(net, manager), manager


@pytest.fixture
def joins(monkeypatch):
    """How often products were joined."""
    calls, whole = [], together._Together.apply
    monkeypatch.setattr(together._Together, "apply", lambda *given: calls.append(1) or whole(*given))
    return calls


def values_and_gradients(net, manager, x):
    x = x.clone().requires_grad_()
    out = net(x)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    wanted = [x, *manager.parameters("a").values()]
    return [out, *torch.autograd.grad((out * pull).sum(), wanted)]


@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12)])
def test_values_and_gradients_are_the_same(joins, shape):
    net, manager = three()
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    state = copy.deepcopy(net.state_dict())
    apart = values_and_gradients(net, manager, x)
    assert joins == []
    assert adjoin(net.layers())
    mine = values_and_gradients(net, manager, x)
    assert len(joins) == 1
    for one, other in zip(mine, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    now = net.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    storages = {layer.weight.untyped_storage().data_ptr() for layer in net.layers()}
    assert len(storages) == 1, "nothing is held twice"


def test_an_input_that_nothing_learns_from_takes_no_gradient(joins):
    net, manager = three()
    adjoin(net.layers())
    net(torch.ones(2, 12)).sum().backward()
    assert joins == [1]
    assert all(bool(p.grad.any()) for p in manager.parameters("a").values())


def test_merging_and_going_back_are_exact_and_a_move_parts_the_weights(joins):
    net, manager = three()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adjoin(net.layers())
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    live = net(x)
    manager.merge()
    torch.testing.assert_close(net(x), live, rtol=1e-5, atol=1e-5)
    manager.unmerge()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(net(x), live)
    joined = len(joins)
    net.double().float()
    torch.testing.assert_close(net(x), live, rtol=1e-5, atol=1e-5)
    assert len(joins) == joined
    assert adjoin(net.layers())
    assert torch.equal(net(x), live)
    assert len(joins) == joined + 1


@pytest.mark.parametrize("change", ["half of them", "another scale", "dropout", "nothing acts", "a weight"])
def test_what_cannot_be_joined_is_not(joins, change):
    spec = {
        "half of them": LoraSpec(rank=3, targets="re:[qk]"),
        "another scale": LoraSpec(rank=3, targets="re:.*", alpha_pattern={"k": 9.0}),
        "dropout": LoraSpec(rank=3, targets="re:.*", dropout=0.5),
    }.get(change, SPEC)
    net, manager = three(spec)
    assert adjoin(net.layers())
    for part in (part for part in net.modules() if isinstance(part, Branch)):
        part.computes = None if change == "dropout" else torch.float32  # a CPU's autocast knows no float32
    if change == "nothing acts":
        manager.activate({})
    if change == "a weight":
        manager.activate({"a": 0.5})
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    out = net(x)
    torch.manual_seed(0)
    torch.testing.assert_close(out, torch.cat([layer(x) for layer in net.layers()], -1), rtol=1e-5, atol=1e-5)
    assert len(joins) == (change == "a weight")


def test_layers_that_do_not_fit_are_left_alone():
    assert not adjoin([nn.Linear(3, 4).requires_grad_(False), nn.Linear(5, 4).requires_grad_(False)])
    assert not adjoin([nn.Linear(3, 4), nn.Linear(3, 4)])
    assert not adjoin([nn.Conv2d(3, 4, 1).requires_grad_(False)])


@pytest.mark.parametrize("make", [tiny_sd1, tiny_sdxl])
def test_a_unet_with_joined_attention_learns_the_same(joins, make):
    pipeline = make()
    unet, manager = pipeline.unet, manage(pipeline)
    manager.add("a", LoraSpec(rank=2, targets={"unet": "attention"}))
    prepared(unet, manager)
    config, rng = unet.config, torch.Generator().manual_seed(0)
    added = None
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, pooled, generator=rng), "time_ids": torch.ones(2, 6)}
    noisy = torch.randn(2, 4, 16, 16, generator=rng)
    states = torch.randn(2, 77, config.cross_attention_dim, generator=rng)

    def run():
        said = unet(noisy, torch.tensor([5, 700]), encoder_hidden_states=states, added_cond_kwargs=added).sample
        return [said, *torch.autograd.grad(said.square().sum(), list(manager.parameters("a").values()))]

    state, apart = {name: value.clone() for name, value in unet.state_dict().items()}, run()
    places = join_attention(unet)
    mine = run()
    assert places == len(joins) == sum(isinstance(p, JoinedAttention) for p in unet.attn_processors.values()) > 4
    for one, other in zip(mine, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.detach().abs().max()))
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())
    assert join_attention(unet) == 0
    with manager.using({}), torch.no_grad():
        unet(noisy, torch.tensor([5, 700]), encoder_hidden_states=states, added_cond_kwargs=added)

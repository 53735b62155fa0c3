import numpy as np
import pytest
import torch
from scipy import stats

from visionpeft.data.classification import MixConfig, mixed
from visionpeft.data.classification.mix import beta_draws
from visionpeft.errors import ConfigError
from visionpeft.training.batches import BatchPlan
from visionpeft.training.rng import StepRng

CPU = torch.device("cpu")
COUNT = 12
PIXELS = torch.randn(COUNT, 3, 16, 20, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(4)[torch.arange(COUNT) % 4]
NEIGHBOUR = torch.arange(COUNT).view(-1, 2).flip(1).flatten()


def rng(step=0, slots=None):
    slots = torch.arange(COUNT) if slots is None else slots
    return StepRng(0, step, slots, COUNT, CPU)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 2.0, 8.0])
def test_beta_draws_are_the_quantiles(alpha):
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000)).float()
    got = beta_draws(uniform, alpha).double().numpy()
    wanted = stats.beta.ppf(uniform.double().numpy(), alpha, alpha)
    inner = ((uniform > 1 / 8192) & (uniform < 1 - 1 / 8192)).numpy()
    assert np.abs(got - wanted)[inner].max() < 1e-3
    assert np.abs(got - wanted).mean() < 3e-5
    assert got.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert beta_draws(torch.tensor([0.0, 0.5, 1.0]), alpha).tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)


def test_mixup_is_the_line_between_neighbours():
    pixels, targets = mixed(PIXELS, TARGETS, MixConfig(mixup=0.4), rng())
    share = beta_draws(rng().uniform("mix-share"), 0.4)
    assert len(set(share.tolist())) == COUNT
    lam = share[:, None, None, None]
    assert torch.allclose(pixels, lam * PIXELS + (1 - lam) * PIXELS[NEIGHBOUR], atol=1e-6)
    assert torch.allclose(targets, share[:, None] * TARGETS + (1 - share[:, None]) * TARGETS[NEIGHBOUR], atol=1e-6)
    assert torch.allclose(targets.sum(dim=1), torch.ones(COUNT))


def test_cutmix_pastes_one_box_and_its_share_of_the_target():
    for step in range(20):
        pixels, targets = mixed(PIXELS, TARGETS, MixConfig(cutmix=1.0), rng(step))
        own, other = (pixels == PIXELS).all(dim=1), (pixels == PIXELS[NEIGHBOUR]).all(dim=1)
        assert (own | other).all()
        for row in range(COUNT):
            down, across = other[row].any(dim=1), other[row].any(dim=0)
            assert torch.equal(other[row], down[:, None] & across[None, :]), "it is a box"
            for line in (down, across):
                places = line.nonzero().flatten()
                assert len(places) == 0 or places[-1] - places[0] == len(places) - 1
            kept = own[row].float().mean()
            assert torch.allclose(targets[row], kept * TARGETS[row] + (1 - kept) * TARGETS[NEIGHBOUR[row]], atol=1e-6)


def test_the_box_has_the_area_that_was_drawn_where_it_is_not_cut_off():
    size = 200
    pixels = torch.stack([torch.zeros(3, size, size), torch.ones(3, size, size)]).repeat(COUNT // 2, 1, 1, 1)
    seen = 0
    for step in range(30):
        got, _ = mixed(pixels, TARGETS, MixConfig(cutmix=1.0), rng(step))
        area = 1 - beta_draws(rng(step).uniform("mix-share"), 1.0)
        centers = [rng(step).uniform(stream) for stream in ("mix-down", "mix-across")]
        inside = torch.stack([torch.minimum(c, 1 - c) >= area.sqrt() / 2 for c in centers]).all(dim=0)
        share = (got != pixels).float().mean(dim=(1, 2, 3))
        assert ((share - area).abs() < 0.015)[inside].all()
        assert (share <= area + 0.015).all()
        seen += int(inside.sum())
    assert seen > 20


@pytest.mark.parametrize(
    "config", [MixConfig(mixup=0.2), MixConfig(cutmix=1), MixConfig(mixup=0.3, cutmix=1, probability=0.7)]
)
@pytest.mark.parametrize(("batch", "accumulation", "world"), [(4, 3, 1), (2, 3, 2), (6, 1, 2), (2, 1, 6), (12, 1, 1)])
def test_processes_and_micro_batches_do_not_matter(config, batch, accumulation, world):
    whole = mixed(PIXELS, TARGETS, config, rng())
    for rank in range(world):
        for micro in BatchPlan(0, 100, batch, accumulation, rank, world).micro(0):
            slots = torch.tensor([position.slot for position in micro])
            part = mixed(PIXELS[slots], TARGETS[slots], config, rng(slots=slots))
            assert torch.equal(part[0], whole[0][slots])
            assert torch.equal(part[1], whole[1][slots])


def test_how_many_are_mixed_and_how():
    mixed_, boxes = 0, 0
    for step in range(100):
        pixels, _ = mixed(PIXELS, TARGETS, MixConfig(mixup=5, cutmix=5, probability=0.6, cutmix_share=0.25), rng(step))
        own, other = (pixels == PIXELS).all(dim=1), (pixels == PIXELS[NEIGHBOUR]).all(dim=1)
        changed = ~own.flatten(1).all(dim=1)
        mixed_ += int(changed.sum())
        boxes += int((changed & (own | other).flatten(1).all(dim=1)).sum())
    assert mixed_ / 100 / COUNT == pytest.approx(0.6, abs=0.06)
    assert boxes / mixed_ == pytest.approx(0.25, abs=0.06)


def test_off_means_untouched():
    for config in (MixConfig(), MixConfig(mixup=1, probability=0)):
        assert not config.active
        pixels, targets = mixed(PIXELS[:3], TARGETS[:3], config, rng())
        assert torch.equal(pixels, PIXELS[:3])
        assert torch.equal(targets, TARGETS[:3])
    with pytest.raises(ConfigError, match="batch size 3 is odd"):
        mixed(PIXELS[:3], TARGETS[:3], MixConfig(mixup=1), rng())


def test_low_precision_keeps_its_type_and_the_graph():
    from torch.fx.experimental.proxy_tensor import make_fx

    config = MixConfig(mixup=0.4, cutmix=1)
    pixels, targets = mixed(PIXELS.bfloat16(), TARGETS, config, rng())
    assert (pixels.dtype, targets.dtype) == (torch.bfloat16, torch.float32)
    draws = {name: rng().uniform(name) for name in ("mix-share", "mix-kind", "mix-whether", "mix-down", "mix-across")}

    class Fixed:
        def uniform(self, stream):
            return draws[stream]

    # symbolic tracing fails where a value is brought to the host
    graph = make_fx(lambda x, t: mixed(x, t, config, Fixed()))(PIXELS, TARGETS)
    assert not any("_local_scalar_dense" in str(node.target) for node in graph.graph.nodes)

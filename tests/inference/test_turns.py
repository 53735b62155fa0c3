"""Blending over the steps, against closed forms and a loop written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, ConfigError
from visionpeft.inference.generate import Request, denoise, evaluating, generate, initial_noise
from visionpeft.inference.region import Region, divided, region_of
from visionpeft.inference.samplers import make_scheduler
from visionpeft.inference.turns import Plan
from visionpeft.models.manage import manage
from visionpeft.models.prompts import encode_prompts, time_ids, unet_forward
from visionpeft.progress import SILENT

from .conftest import base_of

REQUEST = Request("a photo of a robot", negative="blue background", seed=3, steps=4, guidance=5.0)
BOTH = {"one": 0.8, "two": 0.6}
ONES, ZEROS = Region(4, 4, bytes([255] * 16)), Region(4, 4, bytes(16))
LEFT, RIGHT = Region(2, 1, bytes([255, 0])).resized(8, 4), Region(2, 1, bytes([0, 255])).resized(8, 4)


SIZES = {"sd1": 0.3, "sdxl": 0.1}  # of the adapters' noise: the deeper model makes more of rounding


@pytest.fixture(scope="module", params=list(SIZES))
def place(request):
    """A base with two adapters, on the UNet and the text encoders."""
    base = base_of(request.param)
    manager = manage(base)
    for number, name in enumerate(("one", "two")):
        manager.add(name, LoraSpec(targets=dict.fromkeys(["unet", *base.text_encoders], "attention")), seed=number)
        with torch.no_grad():
            for group in manager.trainable(name).values():
                for parameter in group:
                    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                    parameter.add_(noise, alpha=SIZES[request.param])
    manager.activate({})
    return base, manager


def painted(place, *, weights=BOTH, **more):
    base, manager = place
    return generate(base, [replace(REQUEST, weights=weights, **more)], manager=manager)[0].tobytes()


def latents(place, **more):
    base, manager = place
    request = replace(REQUEST, **more)
    with torch.no_grad(), evaluating(base), SILENT.phase("", 1) as bar, manager.using({}):
        return denoise(base, [request], initial_noise(base, request), bar, manager)


def by_hand(place, steps_of, mix):
    """DDIM with guidance, written out: the latents where step n takes the weights `steps_of(n)`, mixed by `mix`."""
    base, manager = place
    scheduler = make_scheduler("ddim", base.pipeline.scheduler)
    scheduler.set_timesteps(REQUEST.steps)
    x = initial_noise(base, REQUEST)
    with torch.no_grad(), evaluating(base):
        for number, time in enumerate(scheduler.timesteps):
            predictions = []
            for weights in steps_of(number):
                with manager.using(weights):
                    states = encode_prompts(base, [REQUEST.negative, REQUEST.prompt])
                    both = unet_forward(base, torch.cat([x, x]), time.repeat(2), states, time_ids(base, 2))
                without, given = both.chunk(2)
                predictions.append(without + REQUEST.guidance * (given - without))
            x = scheduler.step(mix(predictions), time, x, return_dict=False)[0]
    return x


def close(one, two):
    return (one - two).abs().max() <= 1e-5 * two.abs().max()


def test_a_constant_schedule_is_the_plain_weight_to_the_byte(place):
    plain = painted(place)
    assert painted(place, weights={"one": "0.8@0 -> 0.8@1", "two": {0: 0.6}}) == plain
    assert painted(place, weights={"one": {"unet": "0.8@0", "*": 0.8}, "two": 0.6}) == plain


def test_a_schedule_is_its_weight_of_every_step(place):
    """0, 1/3, 2/3, 1 of the steps: 0, 0.5, 1, 1 of "0@0 -> 1@2/3", on the text encoder too."""
    values = [0.0, 0.5, 1.0, 1.0]
    ours = latents(place, weights={"one": {0: 0.0, 2 / 3: 1.0}})
    theirs = by_hand(place, lambda step: [{"one": values[step]}], lambda found: found[0])
    assert close(ours, theirs)
    assert not close(latents(place, weights={"one": 1.0}), theirs)


def test_a_schedule_of_one_block_leaves_the_others(place):
    parts = {"unet": 0.5, "unet.up_blocks": "0@0 -> 1@1", "*": 0.0}
    ours = latents(place, weights={"one": parts})
    steps = [{"one": {**parts, "unet.up_blocks": step / 3}} for step in range(4)]
    assert close(ours, by_hand(place, lambda step: [steps[step]], lambda found: found[0]))


@pytest.mark.parametrize("compose", ["switch", "composite"])
def test_with_one_adapter_it_is_that_adapter(place, compose):
    plain = painted(place, weights={"one": 0.8})
    assert painted(place, weights={"one": 0.8}, compose=compose, switch_every=1) == plain
    assert painted(place, weights={"one": 0.8, "two": 0.0}, compose=compose, switch_every=1) == plain
    assert painted(place, compose=compose, switch_every=1) != plain


def test_switch_takes_turns(place):
    for every, order in ((1, "one two one two"), (2, "one one two two"), (5, "one one one one")):
        names = order.split()
        ours = latents(place, weights=BOTH, compose="switch", switch_every=every)
        theirs = by_hand(place, lambda step, names=names: [{names[step]: BOTH[names[step]]}], lambda found: found[0])
        assert close(ours, theirs)


def test_the_order_of_adapters_is_the_order_of_turns(place):
    base, manager = place
    wanted = [
        replace(REQUEST, weights=w, compose="switch", switch_every=2) for w in (BOTH, dict(reversed(BOTH.items())))
    ]
    one, two = generate(base, wanted, manager=manager)
    assert one.tobytes() == painted(place, weights=wanted[0].weights, compose="switch", switch_every=2)
    assert two.tobytes() == painted(place, weights=wanted[1].weights, compose="switch", switch_every=2)
    assert one.tobytes() != two.tobytes()


def test_composite_is_the_mean_of_the_guided_predictions(place):
    ours = latents(place, weights=BOTH, compose="composite")
    alone = [{name: weight} for name, weight in BOTH.items()]
    assert close(ours, by_hand(place, lambda _: alone, lambda found: (found[0] + found[1]) / 2))


@pytest.mark.parametrize("compose", ["sum", "switch", "composite"])
def test_masks_of_ones_are_no_masks_and_of_zeros_are_the_base(place, compose):
    more = {"compose": compose, "switch_every": 2}
    assert painted(place, regions={"one": ONES, "two": ONES}, **more) == painted(place, **more)
    bare = painted(place, weights={})
    assert painted(place, regions={"one": ZEROS, "two": ZEROS}, **more) == bare


def test_a_mask_of_zeros_takes_just_its_adapter_out(place):
    assert painted(place, regions={"one": ZEROS}) == painted(place, weights={"two": 0.6})


def test_each_pixel_of_the_latent_has_the_prediction_of_its_adapters(place):
    """Left "one", right "two", grey the middle between both and none; noise prediction by noise prediction."""
    grid = np.zeros((16, 16), np.uint8)
    grid[:, :8] = 255
    other = 255 - grid
    other[8:] = 51
    regions = {"one": region_of(Image.fromarray(grid)), "two": region_of(Image.fromarray(other))}
    ours = latents(place, weights=BOTH, regions=regions)
    one, two = (torch.tensor(mask / np.float32(255))[None, None] for mask in (grid, other))
    sets = [{}, {"one": 0.8}, {"two": 0.6}, BOTH]
    shares = [(1 - one) * (1 - two), one * (1 - two), (1 - one) * two, one * two]
    theirs = by_hand(place, lambda _: sets, lambda found: sum(s * e for s, e in zip(shares, found, strict=True)))
    assert close(ours, theirs)


def test_shares_of_a_pixel_add_up_to_one_and_absent_sets_cost_nothing():
    parts = divided(["one", "two", "free"], {"one": LEFT, "two": RIGHT}, (4, 8))
    assert [names for names, _ in parts] == [{"two", "free"}, {"one", "free"}]
    assert torch.equal(sum(share for _, share in parts), torch.ones(1, 1, 4, 8))
    plan = Plan({"one": 1.0, "two": 1.0}, 4, regions={"one": LEFT, "two": RIGHT})
    assert [turn.weights for turn in plan.turns(0, (4, 8))] == [{"two": 1.0}, {"one": 1.0}]


def test_a_mask_is_averaged_over_what_a_pixel_covers():
    assert Region(4, 2, bytes([255, 255, 0, 255, 255, 255, 0, 0])).resized(2, 1).values == bytes([255, 64])
    with pytest.raises(ConfigError, match="proportions"):
        ONES.resized(16, 8)


def test_a_picture_is_the_same_in_any_batch(place):
    base, manager = place
    kinds = [{}, {"compose": "composite"}, {"compose": "switch", "switch_every": 1}, {"regions": {"one": ONES}}]
    requests = [replace(REQUEST, weights=BOTH, seed=seed, **kind) for seed in (0, 1) for kind in kinds]
    together = generate(base, requests, manager=manager, batch_size=4)
    for request, picture in zip(requests, together, strict=True):
        alone = generate(base, [request], manager=manager)[0]
        assert np.abs(np.asarray(alone, int) - np.asarray(picture, int)).max() <= 1


def test_without_weights_it_is_what_is_active(place):
    base, manager = place
    with manager.using(BOTH):
        ours = painted(place, weights=None, compose="composite")
    assert ours == painted(place, compose="composite")
    assert base.unet.training is False


@pytest.mark.parametrize("compose", ["sum", "switch", "composite"])
def test_weights_are_back_after_the_pictures_and_after_an_exception(place, compose, monkeypatch):
    _, manager = place
    before = {"one": 0.3, "two": {"unet": 0.1, "*": 0.2}}
    calls = []

    def failing(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return unet_forward(*arguments, **more)

    with manager.using(before):
        painted(place, weights={"one": "0@0 -> 1@1", "two": 1.0}, compose=compose)
        assert {name: status.weight for name, status in manager.status().items()} == before
        monkeypatch.setattr("visionpeft.inference.generate.unet_forward", failing)
        with pytest.raises(RuntimeError, match="memory"):
            painted(place, weights={"one": "0@0 -> 1@1", "two": 1.0}, compose=compose)
        assert {name: status.weight for name, status in manager.status().items()} == before


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"compose": "swich"}, ConfigError, "Did you mean 'switch'"),
        ({"compose": "switch", "switch_every": 0}, ConfigError, "switch_every is 0"),
        ({"regions": {"on": ONES}}, ConfigError, "Did you mean 'one'"),
        ({"regions": {"one": LEFT}}, ConfigError, "proportions"),
        ({"weights": {"one": "x@0"}}, ConfigError, "schedule 'x@0'"),
        ({"weights": {"ona": "1@0"}}, AdapterError, "Did you mean 'one'"),
        ({"weights": {"one": {"unet.up": "1@0", "*": 0.5}}}, AdapterError, "nothing at 'unet.up'"),
    ],
)
def test_faults(place, more, kind, message):
    with pytest.raises(kind, match=message):
        painted(place, **more)

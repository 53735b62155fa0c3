from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from visionpeft.adapters.spec import LoraSpec
from visionpeft.errors import AdapterError, ConfigError
from visionpeft.inference.generate import Request, denoise, evaluating, further_seed, generate, initial_noise
from visionpeft.inference.samplers import SAMPLERS, make_scheduler
from visionpeft.models.manage import manage
from visionpeft.progress import SILENT

from .conftest import base_of

PROMPTS = ("a photo of a robot", "a red dog on the left", "sks toy")
REQUEST = Request("a photo of a robot", negative="blue background", seed=3, steps=4, guidance=5.0)


def array(picture):
    return np.asarray(picture, int)


def differ(one, two):
    return np.abs(array(one) - array(two)).max()


def perturbed(manager, seed=0):
    with torch.no_grad():
        for group in manager.trainable().values():
            for parameter in group:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.3)


CASES = [(sampler, "blue background", 5.0) for sampler in SAMPLERS]
CASES += [("ddim", "", 5.0), ("ddim", "", 1.0), ("ddim", "blue background", 1.0)]


@pytest.mark.parametrize(("sampler", "negative", "guidance"), CASES)
def test_latents_are_those_of_diffusers_pipelines(base, sampler, negative, guidance):
    """The same noise, scheduler and prompt through diffusers' own pipeline: equal to 1e-4 of the latents' size."""
    request = replace(REQUEST, sampler=sampler, negative=negative, guidance=guidance)
    noise = initial_noise(base, request)
    pipeline = type(base.pipeline)(**base.pipeline.components, **_extras(base))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(sampler, base.pipeline.scheduler)
    further = torch.Generator().manual_seed(further_seed(request.seed))
    chance = {} if SAMPLERS[sampler].settled else {"generator": further}
    theirs = pipeline(
        request.prompt, negative_prompt=negative or None, num_inference_steps=request.steps, guidance_scale=guidance,
        height=base.size, width=base.size, latents=noise, output_type="latent", **chance,
    ).images  # fmt: skip
    with torch.no_grad(), evaluating(base), SILENT.phase("", 1) as bar:
        ours = denoise(base, [request], noise, bar)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def _extras(base):
    if base.family.name == "sdxl":
        return {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
    return {"requires_safety_checker": False}


def test_pictures_are_those_of_diffusers_pipelines(base):
    theirs = base.pipeline(
        REQUEST.prompt, negative_prompt=REQUEST.negative, num_inference_steps=4, guidance_scale=5.0,
        height=base.size, width=base.size, generator=torch.Generator().manual_seed(REQUEST.seed),
    ).images[0]  # fmt: skip
    (ours,) = generate(base, [REQUEST])
    assert differ(ours, theirs) <= 1


def test_a_picture_is_the_same_alone_and_in_any_batch(base):
    requests = [Request(prompt, seed=seed, steps=3, guidance=4.0) for prompt in PROMPTS for seed in (0, 7)]
    alone = [generate(base, [request])[0] for request in requests]
    for batch_size in (2, 6):
        for one, two in zip(alone, generate(base, requests[::-1], batch_size=batch_size)[::-1], strict=True):
            assert differ(one, two) <= 1
    assert len({picture.tobytes() for picture in alone}) == len(alone)


def test_samplers_with_chance_on_the_way_do_not_see_the_batch(sd1):
    requests = [Request(prompt, seed=seed, steps=3, sampler="euler_a") for seed, prompt in enumerate(PROMPTS)]
    alone = [generate(sd1, [request])[0] for request in requests]
    assert all(differ(one, two) <= 1 for one, two in zip(alone, generate(sd1, requests), strict=True))


def test_same_request_same_bytes(sd1):
    one, two = (generate(sd1, [REQUEST])[0].tobytes() for _ in range(2))
    assert one == two


def test_requests_that_differ_in_everything_come_back_in_order(sd1):
    requests = [
        REQUEST,
        replace(REQUEST, steps=2),
        replace(REQUEST, sampler="euler"),
        replace(REQUEST, width=48),
        replace(REQUEST, guidance=1.0),
        replace(REQUEST, guidance=2.0),
    ]
    pictures = generate(sd1, requests)
    assert pictures[3].size == (48, 32)
    for request, picture in zip(requests, pictures, strict=True):
        assert differ(generate(sd1, [request])[0], picture) <= 1


def test_adapters_act_with_their_weights_and_only_then():
    base = base_of("sd1")
    bare = generate(base, [REQUEST])[0]
    manager = manage(base)
    manager.add("one", LoraSpec(targets={"unet": "attention", "text_encoder": "attention"}))
    perturbed(manager)
    weights = [{}, {"one": 0.5}, {"one": 1.0}, None]
    pictures = generate(base, [replace(REQUEST, weights=weight) for weight in weights], manager=manager)
    assert differ(pictures[0], bare) == 0
    assert differ(pictures[1], bare) > 1
    assert differ(pictures[2], pictures[1]) > 1
    assert differ(pictures[3], pictures[2]) == 0  # None leaves it active, as add() has it
    assert manager.status()["one"].weight == 1.0


def test_modes_and_chance_are_left_alone(sd1):
    sd1.unet.train()
    sd1.unet.mid_block.eval()
    state = torch.random.get_rng_state()
    generate(sd1, [replace(REQUEST, sampler="euler_a")])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sd1.unet.training
    assert not sd1.unet.mid_block.training
    sd1.unet.eval()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(REQUEST, sampler="eulr"), "Did you mean 'euler'"),
        (replace(REQUEST, width=33), "multiple of 4 pixels, say 32"),
        (replace(REQUEST, steps=0), "steps is 0"),
    ],
)
def test_faults(sd1, request_, message):
    with pytest.raises(ConfigError, match=message):
        generate(sd1, [request_])


def test_weights_need_a_manager(sd1):
    with pytest.raises(AdapterError, match="manager"):
        generate(sd1, [replace(REQUEST, weights={"one": 1.0})])


def test_every_sampler_is_one_of_diffusers(sd1):
    for name, sampler in SAMPLERS.items():
        scheduler = make_scheduler(name, sd1.pipeline.scheduler)
        assert type(scheduler) is getattr(diffusers, sampler.scheduler)
        assert scheduler.config.beta_end == sd1.pipeline.scheduler.config.beta_end

"""The loss against closed forms and against diffusers' own scheduler."""

import pytest
import torch
from diffusers import DDPMScheduler

from visionpeft.tasks.loss import add_noise, min_snr_weight, squared_errors, target

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TIMES = torch.tensor([0, 1, 100, 500, 998, 999])
KEPT = SCHEDULER.alphas_cumprod[TIMES]


def samples(seed):
    return torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def test_noising_and_targets_are_those_of_diffusers():
    latents, noise = samples(0), samples(1)
    assert torch.allclose(add_noise(latents, noise, KEPT), SCHEDULER.add_noise(latents, noise, TIMES), atol=1e-6)
    assert torch.allclose(
        target("v_prediction", latents, noise, KEPT), SCHEDULER.get_velocity(latents, noise, TIMES), atol=1e-6
    )
    assert target("epsilon", latents, noise, KEPT) is noise
    assert target("sample", latents, noise, KEPT) is latents


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_are_the_papers(gamma):
    kept = KEPT.double()
    snr = kept / (1 - kept)
    least = torch.minimum(snr, torch.full_like(snr, gamma))
    for kind, wanted in (("epsilon", least / snr), ("v_prediction", least / (snr + 1)), ("sample", least)):
        assert torch.allclose(min_snr_weight(kind, kept, gamma), wanted, rtol=1e-9), kind


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_weighted_loss_is_the_same_loss_of_x0(kind):
    """min(SNR, γ) · |x_0 - x̂_0|² whatever the model predicts (section 3.4): a wrong x̂_0 costs the same in each form."""
    latents, noise, wrong = (samples(n).double() for n in range(3))
    kept = KEPT.double()
    noisy = add_noise(latents, noise, kept)
    believed = (noisy - kept.sqrt().view(-1, 1, 1, 1) * wrong) / (1 - kept).sqrt().view(-1, 1, 1, 1)
    errors = (target(kind, wrong, believed, kept) - target(kind, latents, noise, kept)).square().flatten(1).mean(1)
    of_x0 = (wrong - latents).square().flatten(1).mean(1) * (kept / (1 - kept)).clamp(max=5.0)
    assert torch.allclose(errors * min_snr_weight(kind, kept, 5.0), of_x0, rtol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_are_finite_at_the_ends(kind):
    weights = min_snr_weight(kind, torch.tensor([0.0, 1.0]), 5.0)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_errors_are_per_sample_and_float32():
    prediction = torch.zeros(2, 4, 2, 2, dtype=torch.bfloat16)
    wanted = torch.stack([torch.full((4, 2, 2), 2.0), torch.full((4, 2, 2), 3.0)])
    errors = squared_errors(prediction, wanted)
    assert errors.dtype == torch.float32
    assert errors.tolist() == [4.0, 9.0]

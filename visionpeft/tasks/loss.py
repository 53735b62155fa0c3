"""The loss of diffusion models as pure functions: noising, targets, weights. Nothing here waits for the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def add_noise(latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Return x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (arXiv 2006.11239, equation 4).

    Args:
        latents: x_0, [N, …].
        noise: ε, [N, …].
        kept: ᾱ_t of each sample, [N], in [0, 1].
    """
    kept = _beside(kept, latents)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def target(prediction_type: PredictionType, latents: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Return what the model should predict: ε, x_0, or v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (arXiv 2202.00512).

    Args:
        prediction_type: of the base's scheduler.
        latents: x_0, [N, …].
        noise: ε, [N, …].
        kept: ᾱ_t of each sample, [N].
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    kept = _beside(kept, latents)
    return kept.sqrt() * noise - (1 - kept).sqrt() * latents


def min_snr_weight(prediction_type: PredictionType, kept: Tensor, gamma: float) -> Tensor:
    """Return the Min-SNR-γ weights (arXiv 2303.09556, section 3.4): min(SNR, γ) as a weight on the loss of x_0.

    With SNR = ᾱ / (1 - ᾱ): min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v, min(SNR, γ) for x_0. At SNR 0 and at
    infinite SNR the limits are taken, so no weight is ever NaN.

    Args:
        prediction_type: of the base's scheduler.
        kept: ᾱ_t of each sample, [N], in [0, 1].
        gamma: γ, above 0; the paper takes 5.

    Returns:
        [N], finite and not negative.
    """
    if prediction_type == "epsilon":
        return (gamma * (1 - kept) / kept).clamp(max=1.0)
    if prediction_type == "v_prediction":
        return torch.minimum(kept, gamma * (1 - kept))
    return (kept / (1 - kept)).clamp(max=gamma)


def squared_errors(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error of each sample, [N] float32, of [N, …] in any dtype."""
    return (prediction.float() - wanted.float()).square().flatten(1).mean(1)


def _beside(values: Tensor, batch: Tensor) -> Tensor:
    return values.view(-1, *[1] * (batch.ndim - 1))

"""Text to pictures: batched, with live adapters, the same picture whatever else is in the batch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.weights import Weights
from visionpeft.errors import AdapterError, ConfigError
from visionpeft.inference.samplers import make_scheduler, sampler_named
from visionpeft.models.base import Base
from visionpeft.models.prompts import PromptStates, encode_prompts, time_ids, unet_forward
from visionpeft.progress import SILENT, Bar, Progress


@dataclass(frozen=True)
class Request:
    """One picture to make.

    Attributes:
        prompt: what is to be seen.
        negative: what is not; "" is the base's own idea of no text.
        seed: of the initial noise, 0 to 2**63 - 1. The picture depends on it and on nothing else in the batch.
        steps: sampling steps.
        guidance: classifier-free guidance scale; 1 is none and takes half of the time.
        sampler: key of :data:`visionpeft.inference.samplers.SAMPLERS`.
        width: in pixels; None is the base's native size.
        height: in pixels; None is the base's native size.
        weights: which adapters are active and how much: what ``AdapterManager.activate`` takes, {} for the bare base;
            None leaves them as they are.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 30
    guidance: float = 7.5
    sampler: str = "ddim"
    width: int | None = None
    height: int | None = None
    weights: Weights | None = None


def generate(
    base: Base,
    requests: Sequence[Request],
    *,
    manager: AdapterManager | None = None,
    batch_size: int = 4,
    progress: Progress = SILENT,
) -> list[Image.Image]:
    """Return one RGB picture for each request, in their order.

    Requests that share sampler, steps, size, adapter weights and whether they are guided go through the model
    together. The initial noise comes from a CPU generator of each request's seed, so a picture is the same in any
    batch and on any device up to rounding. Modules are in evaluation mode meanwhile, and as before afterwards.

    Args:
        base: the model; it stays where it is.
        requests: what to make.
        manager: of the adapters on ``base``; needed where a request names weights.
        batch_size: pictures that go through the model together, at least 1.
        progress: shows one bar over all sampling steps.

    Raises:
        ConfigError: unknown sampler, a size that does not fit the model, steps or a batch size under 1.
        AdapterError: a request has weights and there is no manager.
    """
    made = dict(generate_each(base, requests, manager=manager, batch_size=batch_size, progress=progress))
    return [made[place] for place in range(len(requests))]


def generate_each(
    base: Base,
    requests: Sequence[Request],
    *,
    manager: AdapterManager | None = None,
    batch_size: int = 4,
    progress: Progress = SILENT,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (place in ``requests``, picture) as soon as each batch is done; else as :func:`generate`.

    Raises:
        ConfigError: as :func:`generate`.
        AdapterError: as :func:`generate`.
    """
    chunks = [chunk for group in _groups(base, requests, manager) for chunk in _chunks(group, batch_size)]
    total = sum(requests[chunk[0]].steps for chunk in chunks)
    with progress.phase("pictures", total) as bar:
        for chunk in chunks:
            wanted = [requests[place] for place in chunk]
            with torch.no_grad(), evaluating(base), _weights(manager, wanted[0].weights):
                pictures = _paint(base, wanted, bar)
            yield from zip(chunk, pictures, strict=True)


@contextmanager
def evaluating(base: Base) -> Generator[None]:
    """Put the base's modules into evaluation mode; afterwards each submodule is in the mode it was in before."""
    modules = [module for root in _modules(base) for module in root.modules()]
    before = [module.training for module in modules]
    try:
        for root in _modules(base):
            root.eval()
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def size_of(base: Base, request: Request) -> tuple[int, int]:
    """Return width and height of the picture, in pixels.

    Raises:
        ConfigError: a side is no multiple of what the model needs.
    """
    size = request.width or base.size, request.height or base.size
    unit = size_unit(base)
    for name, side in zip(("width", "height"), size, strict=True):
        if side % unit or side < unit:
            near = max(unit, round(side / unit) * unit)
            raise ConfigError(f"{name} {side} does not fit {base.id}: take a multiple of {unit} pixels, say {near}.")
    return size


def size_unit(base: Base) -> int:
    """Return what a picture's sides must be multiples of, in pixels: the VAE's and the UNet's downsampling together."""
    return base.latent_scale_factor * 2 ** (len(base.unet.config.block_out_channels) - 1)


def initial_noise(base: Base, request: Request) -> Tensor:
    """Return the noise that a picture starts from, [1, channels, height, width] of the latent, float32 on the CPU."""
    width, height = size_of(base, request)
    scale = base.latent_scale_factor
    shape = (1, base.unet.config.in_channels, height // scale, width // scale)
    return torch.randn(shape, generator=torch.Generator().manual_seed(request.seed))


def decode(base: Base, latents: Tensor, at_once: int = 4) -> list[Image.Image]:
    """Return the pictures of (scaled) latents [N, C, h, w]; ``at_once`` go through the VAE together.

    A VAE that overflows in float16 (``force_upcast``) decodes in float32.
    """
    vae = base.vae
    upcast = vae.dtype == torch.float16 and bool(vae.config.force_upcast)
    with in_float32(vae) if upcast else nullcontext():
        parts = [vae.decode(_into(vae, part), return_dict=False)[0].float().cpu() for part in latents.split(at_once)]
    values = torch.cat(parts).div(2).add(0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in (values * 255).round().astype(np.uint8)]


@contextmanager
def in_float32(model: Any) -> Generator[None]:
    """Bring a model's weights to float32 while the context lasts."""
    dtype = model.dtype
    if dtype == torch.float32:
        yield
        return
    # nn.Module's own `to`: the library's warns of every change of type, and this one is undone
    nn.Module.to(model, torch.float32)
    try:
        yield
    finally:
        nn.Module.to(model, dtype)


def denoise(base: Base, requests: Sequence[Request], latents: Tensor, bar: Bar) -> Tensor:
    """Return the latents [N, C, h, w] that sampling makes of noise, by the sampler that the requests share.

    Classifier-free guidance (arXiv 2207.12598): ε = ε(∅) + s (ε(c) - ε(∅)), both in one forward.

    Args:
        base: the model, in evaluation mode.
        requests: N requests that agree in sampler, steps, size, weights and in being guided.
        latents: noise of unit variance, float32 on the model's device.
        bar: moves on by one a step.
    """
    guided = requests[0].guidance != 1.0
    states = _states(base, requests, guided)
    scales = torch.tensor([request.guidance for request in requests], device=latents.device).view(-1, 1, 1, 1)
    width, height = size_of(base, requests[0])
    ids = time_ids(base, (2 if guided else 1) * len(requests), (height, width))
    dtype = next(base.unet.parameters()).dtype
    chance = [torch.Generator().manual_seed(further_seed(request.seed)) for request in requests]
    chance = {} if sampler_named(requests[0].sampler).settled else {"generator": chance}
    scheduler = make_scheduler(requests[0].sampler, base.pipeline.scheduler)
    scheduler.set_timesteps(requests[0].steps, device=latents.device)
    latents = latents * scheduler.init_noise_sigma
    times = scheduler.timesteps
    for place, time in enumerate(times):
        inputs = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, time)
        prediction = unet_forward(base, inputs.to(dtype), time.expand(len(inputs)), states, ids).float()
        if guided:
            without, given = prediction.chunk(2)
            prediction = without + scales * (given - without)
        latents = scheduler.step(prediction, time, latents, **chance, return_dict=False)[0]
        # Samplers of higher order take more than one evaluation a step; the bar counts the steps asked for.
        bar.advance((place + 1) * requests[0].steps // len(times) - place * requests[0].steps // len(times))
    return latents


def _paint(base: Base, requests: Sequence[Request], bar: Bar) -> list[Image.Image]:
    noise = torch.cat([initial_noise(base, request) for request in requests]).to(base.unet.device)
    return decode(base, denoise(base, requests, noise, bar))


def _states(base: Base, requests: Sequence[Request], guided: bool) -> PromptStates:
    """Encode each different text once; row n of the result belongs to row n of the model's input."""
    texts = [request.prompt for request in requests]
    if guided:
        texts = [request.negative for request in requests] + texts
    unique = list(dict.fromkeys(texts))
    states = encode_prompts(base, unique)
    rows = torch.tensor([unique.index(text) for text in texts], device=states.hidden.device)
    dtype = next(base.unet.parameters()).dtype
    hidden = states.hidden[rows].to(dtype)
    pooled = None if states.pooled is None else states.pooled[rows].to(dtype)
    if guided and getattr(base.pipeline.config, "force_zeros_for_empty_prompt", False):
        kept = torch.tensor([bool(request.negative) for request in requests] + [True] * len(requests))
        kept = kept.to(hidden)
        hidden = hidden * kept.view(-1, 1, 1)
        pooled = None if pooled is None else pooled * kept.view(-1, 1)
    return PromptStates(hidden, pooled)


def _groups(base: Base, requests: Sequence[Request], manager: AdapterManager | None) -> list[list[int]]:
    """Return the places of the requests that can share a batch, group by group."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        sampler_named(request.sampler)
        if request.steps < 1:
            raise ConfigError(f"steps is {request.steps}: at least 1 is needed.")
        if request.weights and manager is None:
            raise AdapterError("a request names adapter weights, but no adapter manager was given: pass manager=.")
        shared = (request.sampler, request.steps, size_of(base, request), request.guidance != 1.0, request.weights)
        groups[json.dumps(shared, sort_keys=True)].append(place)
    return list(groups.values())


def _chunks(places: list[int], size: int) -> list[list[int]]:
    if size < 1:
        raise ConfigError(f"batch size is {size}: at least 1 is needed.")
    return [places[start : start + size] for start in range(0, len(places), size)]


def _weights(manager: AdapterManager | None, weights: Weights | None) -> AbstractContextManager[Any]:
    return nullcontext() if manager is None or weights is None else manager.using(weights)


def _modules(base: Base) -> list[nn.Module]:
    return [base.unet, base.vae, *base.text_encoders.values()]


def _into(vae: nn.Module, latents: Tensor) -> Tensor:
    config: Any = vae.config
    weight = next(vae.parameters())
    return (latents / config.scaling_factor).to(weight.device, weight.dtype)


def further_seed(seed: int) -> int:
    """Return the seed of the noise on the way, for samplers that take some: not the initial noise's."""
    return (seed + 0x5851F42D4C957F2D) % 2**63

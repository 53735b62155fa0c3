"""Text to pictures: batched, with live adapters, the same picture whatever else is in the batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.weights import Weights
from visionpeft.errors import AdapterError, ConfigError
from visionpeft.inference.hearing import Hearing
from visionpeft.inference.region import Region
from visionpeft.inference.samplers import make_scheduler, sampler_named
from visionpeft.inference.schedule import StepWeights, weights_at
from visionpeft.inference.tiles import tiled
from visionpeft.inference.turns import Plan, Turn
from visionpeft.models.base import Base
from visionpeft.models.prompts import time_ids, unet_forward
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
            None leaves them as they are. Any number may be a schedule over the steps, "0@0 -> 0.8@0.4".
        compose: how several adapters act together, key of :data:`visionpeft.inference.turns.COMPOSE`.
        switch_every: with "switch", for how many steps an adapter acts before it is the next one's turn.
        regions: adapter -> mask of where it acts; an adapter without one acts everywhere.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 30
    guidance: float = 7.5
    sampler: str = "ddim"
    width: int | None = None
    height: int | None = None
    weights: StepWeights | None = None
    compose: str = "sum"
    switch_every: int = 5
    regions: Mapping[str, Region] = field(default_factory=dict[str, Region])


def generate(
    base: Base,
    requests: Sequence[Request],
    *,
    manager: AdapterManager | None = None,
    batch_size: int = 4,
    progress: Progress = SILENT,
) -> list[Image.Image]:
    """Return one RGB picture for each request, in their order.

    Requests that share sampler, steps, size, what adapters do and whether they are guided go through the model
    together. The initial noise comes from a CPU generator of each request's seed, so a picture is the same in any
    batch and on any device up to rounding. Modules are in evaluation mode meanwhile, and they and the adapters' weights
    are as before afterwards.

    Args:
        base: the model; it stays where it is.
        requests: what to make.
        manager: of the adapters on ``base``; needed where a request names weights.
        batch_size: pictures that go through the model together, at least 1.
        progress: shows one bar over all sampling steps.

    Raises:
        ConfigError: unknown sampler or way to compose, a size or a mask that does not fit, steps or a batch size under
            1, a schedule that cannot be read.
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
    for chunk in chunks:  # what is wrong is said before anything is painted
        with _kept(manager, requests[chunk[0]]):
            pass
    total = sum(requests[chunk[0]].steps for chunk in chunks)
    with progress.phase("pictures", total) as bar:
        for chunk in chunks:
            wanted = [requests[place] for place in chunk]
            with torch.no_grad(), evaluating(base), _kept(manager, wanted[0]):
                pictures = _paint(base, wanted, bar, manager)
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

    A VAE that overflows in float16 (``force_upcast``) decodes in float32. Where memory is small, pictures go through it
    one at a time, and where it does not suffice for that, in tiles.
    """
    vae = base.vae
    upcast = vae.dtype == torch.float16 and bool(vae.config.force_upcast)
    at_once = 1 if base.places is not None and base.places.tight else at_once
    size = latents.shape[-2] * base.latent_scale_factor, latents.shape[-1] * base.latent_scale_factor
    with base.on_device("vae"), in_float32(vae) if upcast else nullcontext(), tiled(vae, "decode", size):
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


def denoise(
    base: Base, requests: Sequence[Request], latents: Tensor, bar: Bar, manager: AdapterManager | None = None
) -> Tensor:
    """Return the latents [N, C, h, w] that sampling makes of noise, by the sampler that the requests share.

    Args:
        base: the model, in evaluation mode.
        requests: N requests that agree in sampler, steps, size, what adapters do and in being guided.
        latents: noise of unit variance, float32 on the model's device.
        bar: moves on by one a step.
        manager: activates what the requests say, step by step; without it the adapters are left as they are.
    """
    shared = requests[0]
    plan = plan_of(shared, manager) if manager is not None else Plan(None, shared.steps)
    painter = _Painter(base, requests, manager)
    chance = [torch.Generator().manual_seed(further_seed(request.seed)) for request in requests]
    chance = {} if sampler_named(shared.sampler).settled else {"generator": chance}
    scheduler = make_scheduler(shared.sampler, base.pipeline.scheduler)
    scheduler.set_timesteps(shared.steps, device=latents.device)
    latents = latents * scheduler.init_noise_sigma
    times = scheduler.timesteps
    for place, time in enumerate(times):
        # Samplers of higher order take more than one evaluation a step; bar and plan count the steps asked for.
        step, following = (number * shared.steps // len(times) for number in (place, place + 1))
        inputs = scheduler.scale_model_input(latents, time)
        prediction = painter.mixed(inputs, time, plan.turns(step, (latents.shape[-2], latents.shape[-1])))
        latents = scheduler.step(prediction, time, latents, **chance, return_dict=False)[0]
        bar.advance(following - step)
    return latents


class _Painter:
    """Predicts the noise of a batch, guided, with the adapters of each turn."""

    def __init__(self, base: Base, requests: Sequence[Request], manager: AdapterManager | None) -> None:
        self._base, self._manager = base, manager
        self._guided = requests[0].guidance != 1.0
        self._hearing = Hearing(
            base, [request.prompt for request in requests],
            [request.negative for request in requests] if self._guided else [], manager,
        )  # fmt: skip
        scales = torch.tensor([request.guidance for request in requests], device=base.device)
        self._scales = scales.view(-1, 1, 1, 1)
        width, height = size_of(base, requests[0])
        self._ids = time_ids(base, (2 if self._guided else 1) * len(requests), (height, width))
        self._dtype = next(base.unet.parameters()).dtype
        self._active: Weights | None = None

    def mixed(self, inputs: Tensor, time: Tensor, turns: Sequence[Turn]) -> Tensor:
        """``Σ share · ε`` of the turns, [N, C, h, w] in float32."""
        parts = [self._predicted(inputs, time, turn.weights) * _on(turn.share, inputs) for turn in turns]
        return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]

    def _predicted(self, inputs: Tensor, time: Tensor, weights: Weights | None) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598): ε = ε(∅) + s (ε(c) - ε(∅)), both in one forward."""
        if self._manager is not None and weights is not None and weights != self._active:
            self._manager.activate(weights)
            self._active = weights
        inputs = torch.cat([inputs, inputs]) if self._guided else inputs
        states = self._hearing.states(weights)
        found = unet_forward(self._base, inputs.to(self._dtype), time.expand(len(inputs)), states, self._ids).float()
        if not self._guided:
            return found
        without, given = found.chunk(2)
        return without + self._scales * (given - without)


def _on(share: float | Tensor, like: Tensor) -> float | Tensor:
    return share.to(like.device) if isinstance(share, Tensor) else share


def plan_of(request: Request, manager: AdapterManager) -> Plan:
    """Return how the adapters act over the steps of a picture; without weights, those that are active, as they are.

    Raises:
        ConfigError: an unknown way to compose, or a mask of an adapter that has no weight.
    """
    weights = request.weights
    if weights is None and (request.compose != "sum" or request.regions):
        weights = {name: status.weight for name, status in manager.status().items()}
    return Plan(weights, request.steps, request.compose, request.switch_every, request.regions)


def _paint(base: Base, requests: Sequence[Request], bar: Bar, manager: AdapterManager | None) -> list[Image.Image]:
    noise = torch.cat([initial_noise(base, request) for request in requests]).to(base.device)
    with base.on_device("unet"):
        latents = denoise(base, requests, noise, bar, manager)
    return decode(base, latents)


def _groups(base: Base, requests: Sequence[Request], manager: AdapterManager | None) -> list[list[int]]:
    """Return the places of the requests that can share a batch, group by group."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        sampler_named(request.sampler)
        if request.steps < 1:
            raise ConfigError(f"steps is {request.steps}: at least 1 is needed.")
        if (request.weights or request.regions) and manager is None:
            raise AdapterError("a request names adapter weights, but no adapter manager was given: pass manager=.")
        plan = plan_of(request, manager) if manager is not None else Plan(None, request.steps)
        shared = (request.sampler, size_of(base, request), request.guidance != 1.0)
        groups[repr((shared, plan))].append(place)
    return list(groups.values())


def _chunks(places: list[int], size: int) -> list[list[int]]:
    if size < 1:
        raise ConfigError(f"batch size is {size}: at least 1 is needed.")
    return [places[start : start + size] for start in range(0, len(places), size)]


def _kept(manager: AdapterManager | None, request: Request) -> AbstractContextManager[Any]:
    """What a request's adapters do is checked on entry, and on exit the weights are what they were."""
    if manager is None:
        return nullcontext()
    plan = plan_of(request, manager)
    return nullcontext() if plan.weights is None else manager.using(weights_at(plan.weights, 0.0))


def _modules(base: Base) -> list[nn.Module]:
    return list(base.models.values())


def _into(vae: nn.Module, latents: Tensor) -> Tensor:
    config: Any = vae.config
    weight = next(vae.parameters())
    return (latents / config.scaling_factor).to(weight.device, weight.dtype)


def further_seed(seed: int) -> int:
    """Return the seed of the noise on the way, for samplers that take some: not the initial noise's."""
    return (seed + 0x5851F42D4C957F2D) % 2**63

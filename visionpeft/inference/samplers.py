"""The samplers by name: a table over diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from visionpeft.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Sampler:
    """One sampler.

    Attributes:
        scheduler: the class in diffusers.
        label: what AUTOMATIC1111 calls it, for the text in pictures.
        options: settings of the scheduler that differ from the base's.
        settled: whether the picture is the same for the same initial noise, without more random numbers on the way.
    """

    scheduler: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settled: bool = True


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", "DDIM"),
    "pndm": Sampler("PNDMScheduler", "PLMS", {"skip_prk_steps": True}),
    "lms": Sampler("LMSDiscreteScheduler", "LMS"),
    "euler": Sampler("EulerDiscreteScheduler", "Euler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "Euler a", settled=False),
    "heun": Sampler("HeunDiscreteScheduler", "Heun"),
    "dpm++2m": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++2m_karras": Sampler(
        "DPMSolverMultistepScheduler",
        "DPM++ 2M Karras",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC"),
    "ddpm": Sampler("DDPMScheduler", "DDPM", settled=False),
}


def sampler_named(name: str) -> Sampler:
    """Return the sampler of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler '{name}' is unknown: one of {', '.join(SAMPLERS)}.{did_you_mean(name, SAMPLERS)}")
    return SAMPLERS[name]


def make_scheduler(name: str, base_scheduler: Any) -> Any:
    """Return a new scheduler of that sampler with the base's noise schedule and kind of prediction.

    Args:
        name: key of :data:`SAMPLERS`.
        base_scheduler: the scheduler that came with the base model; it is only read.

    Raises:
        ConfigError: there is no such sampler.
    """
    sampler = sampler_named(name)
    kind = getattr(import_module("diffusers"), sampler.scheduler)
    config = {key: value for key, value in base_scheduler.config.items() if not key.startswith("_")}
    return kind.from_config({**config, **sampler.options})

"""Adapted tiny models of every kind, each with what runs it, for the tests of what is kept thriftily."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import tiny_sd1, tiny_sdxl
from tests.tiny_speech import new_whisper
from tests.tiny_vision import CONFIGS, available, sides_of, tiny_vision
from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.spec import LoraSpec
from visionpeft.models.manage import manage

Case = tuple[nn.Module, AdapterManager, Callable[[nn.Module], Tensor]]


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Made = tuple[Any, str, Callable[[Any], Tensor]]
"""What is managed, its part that trains ("" is all of it), and what runs that."""


def _unet(pipeline: Any) -> Made:
    width = pipeline.unet.config.cross_attention_dim
    added = {"text_embeds": _drawn(2, 32), "time_ids": _drawn(2, 6)} if width == 64 else None

    def run(unet: Any) -> Tensor:
        states = _drawn(2, 77, width, seed=1)
        return unet(_drawn(2, 4, 16, 16), torch.tensor([10, 600]), states, added_cond_kwargs=added).sample

    return pipeline, "unet", run


def _text() -> Made:
    ids = torch.arange(2 * 77).reshape(2, 77)
    return tiny_sd1(), "text_encoder", lambda model: model(ids, output_hidden_states=True).hidden_states[-1]


def _whisper() -> Made:
    model = new_whisper()
    heard = _drawn(2, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return model, "", lambda model: model(input_features=heard, decoder_input_ids=torch.arange(8).reshape(2, 4)).logits


def _seen(name: str) -> Made:
    side = sides_of(name)
    return tiny_vision(name), "", lambda model: model(pixel_values=_drawn(2, 3, side, side)).logits


CASES: dict[str, Callable[[], Made]] = {
    "sd1": lambda: _unet(tiny_sd1()),
    "sdxl": lambda: _unet(tiny_sdxl()),
    "clip text": _text,
    "whisper": _whisper,
    **{name: lambda name=name: _seen(name) for name in CONFIGS if available(name)},
}


def _targets(name: str) -> str:
    return "conv" if name == "resnet" else "all-linear"


def case(name: str) -> Case:
    """The model of a case with a LoRA that changes what it says, its manager, and what runs it."""
    whole, part, run = CASES[name]()
    manager = manage(whole)
    manager.add("a", LoraSpec(rank=2, targets={part: "attention"} if part else _targets(name)), seed=1)
    model = getattr(whole, part) if part else whole
    with torch.no_grad():
        for number, parameter in enumerate(manager.parameters("a").values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model.train(), manager, run

"""Adapters with values in every factor, over the tiny pipelines."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from tests.tiny import tiny_sd1, tiny_sd2, tiny_sdxl
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import DoraSpec, LohaSpec, LokrSpec, LoraSpec, RsLoraSpec
from visionpeft.files.bases import weights_of
from visionpeft.models.manage import manage

PIPELINES = {"sd1": tiny_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}
SPECS = {
    "lora": (LoraSpec, {"rank": 4, "alpha": 2.0}),
    "rslora": (RsLoraSpec, {"rank": 3, "alpha": 6.0}),
    "dora": (DoraSpec, {"rank": 4, "alpha": 2.0}),
    "loha": (LohaSpec, {"rank": 2, "alpha": 3.0}),
    "lokr": (LokrSpec, {"rank": 2, "alpha": 3.0, "decompose_both": True, "factor": 4}),
}
PER_MODULE = {"mid_block.attentions.0.proj_in": 2, "mid_block.attentions.0.proj_out": 6}


@cache
def pipeline(family: str) -> Any:
    """One shared tiny pipeline a family; nobody changes its weights."""
    return PIPELINES[family]()


@cache
def weights(family: str) -> Any:
    """Its weights by "component.path"."""
    return weights_of(pipeline(family))


@cache
def adapter(family: str, method: str, *, patterns: bool = False, trained: bool = True, conv: bool = True) -> Adapter:
    """An adapter on UNet and text encoders, convolutions included, with random values in every factor."""
    kind, values = SPECS[method]
    if patterns:
        values = values | {"rank_pattern": PER_MODULE, "alpha_pattern": {"mid_block.attentions.0.proj_in": 5.0}}
    unet = ("kohya", "conv") if conv else ("kohya",)
    texts = {name: kind(**SPECS[method][1], targets="kohya") for name in ("text_encoder", "text_encoder_2")}
    base = PIPELINES[family]()
    manager = manage(base)
    manager.add(
        "subject", {"unet": kind(**values, targets=unet), **{n: s for n, s in texts.items() if hasattr(base, n)}}
    )
    if trained:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for group in manager.trainable("subject").values():
                for parameter in group:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return manager.capture("subject")

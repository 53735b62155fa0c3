"""The layout of cloneofsimo's ``lora``, the first for Stable Diffusion: modules by number, ``unet:17:up``.

A number counts the linear layers as that program met them: in the UNet the blocks going down, those going up, and the
middle one last (it was put into the model last); in a transformer block the first attention, the gated projection, the
second attention. Which classes were counted stands in the header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from visionpeft.errors import FileFormatError

NAME = re.compile(r"(unet|text_encoder):(\d{1,6}):(up|down)")
WORD = re.compile(r"<[^<>]{1,64}>")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_CLIP = ("k_proj", "v_proj", "q_proj", "out_proj")  # in the order in which transformers builds them
_KNOWN = {"CrossAttention", "Attention", "GEGLU", "CLIPAttention"}


def recognises(names: Iterable[str]) -> bool:
    """Whether a file's tensor names are cloneofsimo's."""
    return any(NAME.fullmatch(name) for name in names)


def paths(component: str, metadata: Mapping[str, str]) -> list[str]:
    """The canonical paths of a component's modules, in the order of their numbers.

    Raises:
        FileFormatError: the header counts classes whose order is not known.
    """
    classes = _classes(component, metadata)
    if unknown := sorted(classes - _KNOWN):
        raise FileFormatError(
            f"the modules of {component} are counted over {', '.join(unknown)}, whose order is unknown"
        )
    if component == "text_encoder":
        return [f"text_model.encoder.layers.{layer}.self_attn.{name}" for layer in range(32) for name in _CLIP]
    inner = _inner(gated="GEGLU" in classes, attention=bool(classes & {"CrossAttention", "Attention"}))
    return [f"{block}.transformer_blocks.0.{name}" for block in _blocks() for name in inner]


def _classes(component: str, metadata: Mapping[str, str]) -> set[str]:
    usual = ["CLIPAttention"] if component == "text_encoder" else ["CrossAttention", "Attention", "GEGLU"]
    try:
        given = json.loads(metadata.get(component, "[]")) or usual
    except (ValueError, RecursionError):
        given = usual
    return {str(name) for name in given} if isinstance(given, list) else set(usual)


def _inner(*, gated: bool, attention: bool) -> list[str]:
    first = [f"attn1.{name}" for name in _ATTENTION] if attention else []
    second = [f"attn2.{name}" for name in _ATTENTION] if attention else []
    return [*first, *(["ff.net.0.proj"] if gated else []), *second]


def _blocks() -> list[str]:
    down = [f"down_blocks.{block}.attentions.{place}" for block in range(3) for place in range(2)]
    up = [f"up_blocks.{block}.attentions.{place}" for block in range(1, 4) for place in range(3)]
    return [*down, *up, "mid_block.attentions.0"]

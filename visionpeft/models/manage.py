"""From a model or pipeline to the manager of its adapters."""

from __future__ import annotations

from typing import Any

from visionpeft.adapters.manager import AdapterManager
from visionpeft.models.base import Base
from visionpeft.models.family import components_of, family_of
from visionpeft.models.speech import SpeechBase
from visionpeft.models.vision import VisionBase


def manage(model: Any) -> AdapterManager:
    """Return the manager of a model's adapters and freeze the model.

    Args:
        model: a `Base`, a `VisionBase`, a `SpeechBase`, a diffusers pipeline or a single model; the latter two have no
            known id or hash, so an adapter made on other weights of the same family is not noticed.

    Raises:
        BaseModelError: of no known family.
        AdapterError: it is adapted already.
    """
    known = isinstance(model, Base | VisionBase | SpeechBase)
    inner = model.model if isinstance(model, VisionBase | SpeechBase) else model
    plain = model.pipeline if isinstance(model, Base) else inner
    family = model.family if known else family_of(plain)
    about = (model.id, model.hash) if known else ("", "")
    tokenizers = {
        part: tokenizer
        for part in family.components
        if part.startswith("text_encoder")
        and (tokenizer := getattr(plain, part.replace("text_encoder", "tokenizer"), None)) is not None
    }
    return AdapterManager(components_of(plain), family, tokenizers, *about)

"""What the UNet hears in each turn: prompts, encoded again only where what acts on a text encoder changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from visionpeft.adapters.manager import AdapterManager
from visionpeft.adapters.weights import Weights
from visionpeft.models.base import Base
from visionpeft.models.prompts import PromptStates, encode_prompts

_SILENT = "unet"


class Hearing:
    """The encoded prompts of a batch.

    Args:
        base: the model.
        prompts: one a picture.
        negatives: one a picture, which come before the prompts; none where the pictures are not guided.
        manager: of the adapters, of which those on text encoders count.
    """

    def __init__(
        self, base: Base, prompts: Sequence[str], negatives: Sequence[str], manager: AdapterManager | None
    ) -> None:
        self._base, self._texts, self._negatives = base, [*negatives, *prompts], list(negatives)
        status = {} if manager is None else manager.status()
        self._heard = {name for name, state in status.items() if set(state.methods) - {_SILENT}}
        self._known: dict[str, PromptStates] = {}

    def states(self, weights: Weights | None) -> PromptStates:
        """Return the states of all texts under the adapters that are active now, which ``weights`` says.

        Row n belongs to row n of the model's input: the negatives, then the prompts.
        """
        key = repr(_of_text(weights, self._heard))
        if key not in self._known:
            self._known[key] = self._encoded()
        return self._known[key]

    def _encoded(self) -> PromptStates:
        """Encode each different text once."""
        unique = list(dict.fromkeys(self._texts))
        states = encode_prompts(self._base, unique)
        rows = torch.tensor([unique.index(text) for text in self._texts], device=states.hidden.device)
        dtype = next(self._base.unet.parameters()).dtype
        hidden = states.hidden[rows].to(dtype)
        pooled = None if states.pooled is None else states.pooled[rows].to(dtype)
        if self._negatives and getattr(self._base.pipeline.config, "force_zeros_for_empty_prompt", False):
            prompts = len(self._texts) - len(self._negatives)
            kept = torch.tensor([bool(text) for text in self._negatives] + [True] * prompts).to(hidden)
            hidden = hidden * kept.view(-1, 1, 1)
            pooled = None if pooled is None else pooled * kept.view(-1, 1)
        return PromptStates(hidden, pooled)


def _of_text(weights: Weights | None, heard: set[str]) -> object:
    """The part of the weights that text encoders depend on."""
    if not isinstance(weights, Mapping):
        return weights
    return {name: _without_unet(weight) for name, weight in sorted(weights.items()) if name in heard}


def _without_unet(weight: object) -> object:
    if not isinstance(weight, Mapping):
        return weight
    return {prefix: value for prefix, value in weight.items() if str(prefix).partition(".")[0] != _SILENT}

"""Soft prompts (Lester et al. 2021, arXiv:2104.08691): trained vectors in front of what a decoder of text reads.

They stand where a text decoder's earlier words would stand, so the text's positions move behind them, and its cache
keeps them: they enter with the first tokens of a text and leave the output at once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.slots import Part, Slot
from visionpeft.adapters.spec import PromptSpec
from visionpeft.errors import AdapterError

_SAID_BEFORE = 4  # tokens of language, task and timestamps, for which there is to be room too


class PromptedDecoder(Slot):
    """A decoder of transformers: ``input_ids`` or ``inputs_embeds`` in, ``last_hidden_state`` [N, L, D] out."""

    order = 1

    @property
    def prompt_tokens(self) -> int:
        """How many of the decoder's positions the active prompts take."""
        return sum(self.branch(name).count for name, _ in self.active)

    def check(self) -> None:
        """Raise AdapterError for a weight other than 1, or for prompts that leave no room for a text."""
        for name, weight in self.active:
            if weight != 1.0:
                raise AdapterError(
                    f"Adapter '{name}': its prompts are there or not, so its weight is 1 or 0, not {weight:g}."
                )
        if self.active:
            check_room(self.base, self.prompt_tokens)

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the decoder with the prompts in front of the first tokens."""
        if not self.active:
            return self.base(input_ids=input_ids, **kwargs)
        count, past = self.prompt_tokens, kwargs.get("past_key_values")
        begun = past is not None and past.get_seq_length() > 0
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = F.pad(kwargs["attention_mask"], (count, 0), value=1)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = _moved_on(kwargs["position_ids"], count, begun=begun)
        if begun:
            return self.base(input_ids=input_ids, **kwargs)
        tokens = kwargs.pop("inputs_embeds", None)
        if tokens is None:
            tokens = cast("Any", self.base).get_input_embeddings()(input_ids)
        prompts = [self.branch(name)(tokens) for name, _ in self.active]
        out = self.base(inputs_embeds=torch.cat([*prompts, tokens], dim=1), **kwargs)
        out.last_hidden_state = out.last_hidden_state[:, count:]
        return out


class DecoderPrompt(Part):
    """One adapter's prompts.

    Args:
        spec: how many, and their dropout.
        prompts: [tokens, width].
    """

    kind = PromptedDecoder

    def __init__(self, spec: PromptSpec, prompts: Tensor) -> None:
        super().__init__({"prompts": prompts})
        self.count, self.dropout = spec.tokens, spec.dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the prompts [batch, count, width] for a batch of embedded tokens, in its type."""
        prompts = self.parts["prompts"].to(tokens.dtype).expand(len(tokens), -1, -1)
        return F.dropout(prompts, self.dropout, self.training and self.dropout > 0)


def _moved_on(positions: Tensor, count: int, *, begun: bool) -> Tensor:
    """The positions of tokens that have prompts before them; with those of the prompts where they enter."""
    if begun:
        return positions + count
    own = torch.arange(count, device=positions.device).expand(*positions.shape[:-1], -1)
    return torch.cat([own, positions + count], dim=-1)


def check_room(decoder: nn.Module, count: int) -> None:
    """Raise AdapterError where so many prompts leave less than half of a decoder's positions for what it writes."""
    room = len(cast("Tensor", cast("Any", decoder).embed_positions.weight))
    most = room // 2 - _SAID_BEFORE
    if count > most:
        raise AdapterError(f"{count} prompts: of the {room} positions of the decoder they can take {max(most, 0)}.")


def decoder_prompt(spec: PromptSpec, decoder: nn.Module, given: Tensor | None) -> DecoderPrompt:
    """Return prompts with given values, or beginning as words drawn from the decoder's own (§3.2 of the paper).

    Raises:
        AdapterError: they leave too little room for the text.
    """
    check_room(decoder, spec.tokens)
    words = cast("Tensor", cast("Any", decoder).get_input_embeddings().weight).detach()
    if given is None:
        given = words[torch.randint(len(words), (spec.tokens,)).to(words.device)].float().cpu()
    return DecoderPrompt(spec, given).to(words.device)

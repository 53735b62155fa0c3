"""What the UNet hears: prompts through the text encoders, right for every Stable Diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionpeft.adapters.tokens import spell
from visionpeft.errors import ConfigError
from visionpeft.models.base import Base


@dataclass(frozen=True)
class PromptStates:
    """Encoded prompts.

    Attributes:
        hidden: [B, 77, D], what the cross-attention reads.
        pooled: [B, P] from SDXL's second text encoder, else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def before(self, others: PromptStates) -> PromptStates:
        """Return these states and then those of ``others``."""
        pooled = None
        if self.pooled is not None and others.pooled is not None:
            pooled = torch.cat([self.pooled, others.pooled])
        return PromptStates(torch.cat([self.hidden, others.hidden]), pooled)

    def of(self, rows: Tensor) -> PromptStates:
        """Return the states of the prompts at ``rows``, [N] long."""
        return PromptStates(self.hidden[rows], None if self.pooled is None else self.pooled[rows])


def encode_prompts(base: Base, prompts: Sequence[str], *, clip_skip: int = 0) -> PromptStates:
    """Return the states of prompts; gradients flow into text encoders that train.

    SD 1.x and 2.x read the last layer, normalised; SDXL the last layer but one of both encoders, joined, and the
    second's pooled projection at the end of text. `clip_skip` goes so many layers further down.

    Args:
        base: the base model.
        prompts: B texts; what is beyond 77 tokens is cut (see `cut_prompt`).
        clip_skip: layers to leave out, from 0.

    Raises:
        ConfigError: clip_skip is negative or leaves no layer.
    """
    return encode_ids(base, prompt_ids(base, prompts), clip_skip=clip_skip)


def prompt_ids(base: Base, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids [B, 77] of prompts for each text encoder, by its name; made on the host and copied to the device."""
    return {name: token_ids(base, name, prompts) for name in base.text_encoders}


def encode_ids(base: Base, ids_of: Mapping[str, Tensor], *, clip_skip: int = 0) -> PromptStates:
    """Return the states of prompts whose `prompt_ids` are known: all on the device, which nothing waits for.

    Raises:
        ConfigError: clip_skip is negative or leaves no layer.
    """
    joined = base.family.name == "sdxl"
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for name, encoder in base.text_encoders.items():
        with base.on_device(name):
            ids = ids_of[name]
            out = _run(encoder, ids, clip_skip)
            hidden.append(_states(encoder, out, clip_skip + 1 if joined else clip_skip, normalised=not joined))
            if joined and hasattr(encoder, "text_projection"):
                pooled = _pooled(encoder, out.last_hidden_state, ids, base.tokenizers[name].eos_token_id)
    return PromptStates(torch.cat(hidden, dim=-1), pooled)


def token_ids(base: Base, encoder: str, prompts: Sequence[str]) -> Tensor:
    """Token ids [B, 77] of prompts for one text encoder, where the base computes; words of several rows written out."""
    tokenizer = base.tokenizers[encoder]
    texts = [spell(prompt, tokenizer) for prompt in prompts]
    length = _length(tokenizer)
    found = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.input_ids.to(base.device)


def _length(tokenizer: Any) -> int:
    return min(int(tokenizer.model_max_length), 77)


def _run(encoder: Any, ids: Tensor, clip_skip: int) -> Any:
    layers = int(encoder.config.num_hidden_layers)
    if not 0 <= clip_skip < layers - 1:
        raise ConfigError(f"clip_skip is {clip_skip}; this text encoder has {layers} layers: take 0 to {layers - 2}.")
    # the body alone: the pooled output of transformers is not used, as it may look for the end of text at a wrong id
    return getattr(encoder, "text_model", encoder)(input_ids=ids, output_hidden_states=True)


def _states(encoder: Any, out: Any, skip: int, *, normalised: bool) -> Tensor:
    if normalised and skip == 0:
        return out.last_hidden_state
    states = out.hidden_states[-1 - skip]
    return getattr(encoder, "text_model", encoder).final_layer_norm(states) if normalised else states


def _pooled(encoder: Any, last: Tensor, ids: Tensor, end: int) -> Tensor:
    # the first end of text; published configurations give another id, and trained words have ids beyond it
    place = (ids == end).int().argmax(dim=-1)
    return encoder.text_projection(last[torch.arange(len(ids), device=ids.device), place])


def time_ids(base: Base, count: int, size: int | tuple[int, int] | None = None) -> Tensor | None:
    """SDXL's size conditioning [count, 6]: original size, crop offset 0, target size; None for other families.

    Args:
        base: the base model.
        count: how many rows.
        size: the picture's side, or (height, width), in pixels; None is the native size.
    """
    if base.family.name != "sdxl":
        return None
    height, width = (size, size) if isinstance(size, int) else size or (base.size, base.size)
    rows = [torch.full((count,), float(side), device=base.device) for side in (height, width, 0, 0, height, width)]
    return torch.stack(rows, dim=1)  # filled there: nothing is copied, which would be waited for


def unet_forward(
    base: Base, noisy: Tensor, timesteps: Tensor, states: PromptStates, time_ids: Tensor | None = None
) -> Tensor:
    """The UNet's prediction [B, 4, h, w] for noisy latents [B, 4, h, w] at timesteps [B], all in any type."""
    dtype, added = base.unet.dtype, None
    if states.pooled is not None:
        added = {"text_embeds": states.pooled.to(dtype), "time_ids": time_ids}
    hidden = states.hidden.to(dtype)
    return base.unet(noisy.to(dtype), timesteps, encoder_hidden_states=hidden, added_cond_kwargs=added).sample


def cut_prompt(base: Base, prompt: str) -> tuple[str, str]:
    """Return (what the text encoders read, what is cut) of a prompt; the second is "" where all 77 tokens suffice."""
    tokenizer = next(iter(base.tokenizers.values()))
    text = spell(prompt, tokenizer)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    room = _length(tokenizer) - 2
    if len(offsets) <= room:
        return prompt, ""
    end = offsets[room - 1][1]
    return text[:end], text[end:].strip()

"""A UNet's attention with the products joined that read the same input: q, k and v, or k and v of a text."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.together import adjoin, outputs


def join_attention(model: nn.Module) -> int:
    """Join the products of a UNet's attention; return in how many places.

    Only attention that torch's own function computes is joined, and does the same as before. The model has to be where
    it stays: a move parts the weights, and then they are multiplied one by one again.
    """
    joined = [part for part in model.modules() if _plain(part) and adjoin(_readers(part))]
    for part in joined:
        part.set_processor(JoinedAttention())
    return len(joined)


def _readers(attention: Any) -> list[nn.Module]:
    """The projections that read the same input."""
    both = [attention.to_k, attention.to_v]
    return both if attention.is_cross_attention else [attention.to_q, *both]


def _plain(attention: Any) -> bool:
    """Whether a module is attention, by torch's own function, with nothing but projections around it."""
    if not isinstance(attention, Attention) or type(attention.processor) is not AttnProcessor2_0:
        return False
    extras = (attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    whole = attention.rescale_output_factor == 1.0 and not attention.residual_connection
    return all(extra is None for extra in extras) and whole and not attention.only_cross_attention


class JoinedAttention:
    """What diffusers calls a processor: attention [batch, tokens, width] -> the same shape."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend to the text's states, or to the tokens themselves where there are none."""
        if attention_mask is not None or hidden_states.ndim != 3:
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if encoder_hidden_states is None:
            query, key, value = outputs((attn.to_q, attn.to_k, attn.to_v), hidden_states)
        else:
            query = attn.to_q(hidden_states)
            key, value = outputs((attn.to_k, attn.to_v), encoder_hidden_states)
        heads = [states.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for states in (query, key, value)]
        found = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](found))

"""Gated layers as transformers has them since 5.18: the gate and what it opens are two layers, not one of both.

A base that an earlier transformers builds gets them so too: targets, saved adapters and the base's hash then mean the
same in every version.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_FORMER = {"weights_in", "weights_out"}


class GatedLayers(nn.Module):
    """``down(silu(gate(x)) · up(x))`` (Shazeer 2020, arXiv:2002.05202).

    Args:
        both: a linear layer whose output's first half is the gate, and the second what it opens.
        down: the layer after it; it is taken over.
    """

    def __init__(self, both: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = _halves(both)
        self.down_proj = down

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., D] of x [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def divide_gated_layers(model: nn.Module) -> None:
    """Replace every gated layer that holds gate and values in one by `GatedLayers` of the same weights."""
    for path, part in list(model.named_modules()):
        children = dict(part.named_children())
        if set(children) != _FORMER:
            continue
        both, down = children["weights_in"], children["weights_out"]
        if isinstance(both, nn.Linear) and isinstance(down, nn.Linear) and both.out_features == 2 * down.in_features:
            above, _, name = path.rpartition(".")
            setattr(model.get_submodule(above), name, GatedLayers(both, down))


def _halves(both: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Two layers that give the halves of a layer's output; their weights are views of its."""
    half, biased = both.out_features // 2, "bias" in dict(both.named_parameters())
    first, second = (nn.Linear(both.in_features, half, biased, device="meta") for _ in range(2))
    for layer, rows in ((first, slice(0, half)), (second, slice(half, None))):
        for name, value in both.named_parameters():
            setattr(layer, name, nn.Parameter(value.detach()[rows], value.requires_grad))
    return first, second

"""Visual prompt tuning (Jia et al. 2022, arXiv:2203.12119): trained tokens in front of a transformer's layers.

Tokens are [batch, tokens, width]: first the prefix (class, distillation, registers), then the prompts of all active
adapters, then the picture's. Prompts of single layers (deep) leave again after their layer, those that pass through all
(shallow) after the last one: what comes after the transformer sees the tokens that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionpeft.adapters.slots import Part, Slot
from visionpeft.adapters.spec import VptSpec
from visionpeft.errors import AdapterError


class PromptedLayer(Slot):
    """A transformer's layer [batch, tokens, width] -> the same, or a tuple that begins with it."""

    order = 1

    def check(self) -> None:
        """Raise AdapterError for a weight other than 1."""
        for name, weight in self.active:
            if weight != 1.0:
                raise AdapterError(
                    f"Adapter '{name}': its prompts are there or not, so its weight is 1 or 0, not {weight:g}."
                )

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Put the prompts in, run the layer, take out those that go."""
        if not self.active:
            return self.base(tokens, *args, **kwargs)
        self.check()
        parts: list[Prompt] = [self.branch(name) for name, _ in self.active]
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            raise AdapterError(f"'{parts[0].place}' is given an attention mask or bias, which has no room for prompts.")
        entering = [part(tokens) for part in sorted(parts, key=lambda part: part.stays) if part.enters]
        prefix = parts[0].prefix
        out = self.base(torch.cat([tokens[:, :prefix], *entering, tokens[:, prefix:]], dim=1), *args, **kwargs)
        gone = sum(part.count for part in parts if part.leaves)
        if isinstance(out, tuple):
            return (_without(out[0], prefix, gone), *out[1:])
        return _without(out, prefix, gone)


def _without(tokens: Tensor, prefix: int, gone: int) -> Tensor:
    return torch.cat([tokens[:, :prefix], tokens[:, prefix + gone :]], dim=1) if gone else tokens


class Prompt(Part):
    """One adapter's prompts at one layer.

    Args:
        place: the layer's.
        spec: how many, and their dropout.
        prefix: tokens in front of them.
        prompts: [tokens, width], or nothing where prompts only leave.
        leaves: whether they leave after this layer.
        follows: the place where leaving prompts came in.
    """

    kind = PromptedLayer

    def __init__(
        self, place: str, spec: VptSpec, prefix: int, prompts: Tensor | None, *, leaves: bool, follows: str = ""
    ) -> None:
        super().__init__({} if prompts is None else {"prompts": prompts})
        self.place, self.prefix, self.follows = place, prefix, follows
        self.count, self.dropout = spec.tokens, spec.dropout
        self.enters, self.leaves, self.stays = prompts is not None, leaves, not spec.deep

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the prompts [batch, count, width] for a batch of tokens, in its type."""
        prompts = self.parts["prompts"].to(tokens.dtype).expand(len(tokens), -1, -1)
        return F.dropout(prompts, self.dropout, self.training and self.dropout > 0)


def prompts_of(
    component: str, spec: VptSpec, layers: Mapping[str, nn.Module], prefix: int, given: Mapping[str, Tensor] | None
) -> dict[str, Prompt]:
    """Return the prompts by place.

    Args:
        component: whose layers they are.
        spec: how many, shallow or deep.
        layers: path -> layer, in order.
        prefix: tokens in front of the prompts.
        given: place -> [tokens, width]; None draws uniform first values in ±√(3/width), Xavier's range.
    """
    places = [f"{component}.{path}" for path in layers]
    first, last = places[0], places[-1]
    values = first_values(component, spec, layers) if given is None else given
    if spec.deep:
        parts = {place: Prompt(place, spec, prefix, values[place], leaves=True) for place in places}
    else:
        parts = {first: Prompt(first, spec, prefix, values[first], leaves=first == last)}
    if last not in parts:
        parts[last] = Prompt(last, spec, prefix, None, leaves=True, follows=first)
    device = next(next(iter(layers.values())).parameters()).device
    return {place: part.to(device) for place, part in parts.items()}


def first_values(component: str, spec: VptSpec, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """New prompts by the places where they come in."""
    chosen = list(layers)[: None if spec.deep else 1]
    widths = {path: width_of(f"{component}.{path}", layers[path]) for path in chosen}
    return {f"{component}.{path}": _drawn(spec.tokens, width) for path, width in widths.items()}


def _drawn(count: int, width: int) -> Tensor:
    bound = sqrt(3 / width)
    return torch.empty(count, width).uniform_(-bound, bound)


def width_of(place: str, layer: nn.Module) -> int:
    """The width of a layer's tokens: that of its first norm.

    Raises:
        AdapterError: it has none.
    """
    for module in layer.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1:
            return len(weight)
    raise AdapterError(f"'{place}' is no transformer layer: it has no norm that tells the width of its tokens.")

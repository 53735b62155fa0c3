"""Trained parameters in groups that may have learning rates of their own: heads, the rest by depth or by part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from visionpeft.models.depth import depths
from visionpeft.models.vision import VisionBase

HEADS, BOXES, BODY = "heads", "boxes", "model"
PARTS = ("backbone", "encoder", "decoder")
"""Of a detector, as its family names them among its targets."""


class Groups:
    """How a base's parameters are grouped; made before adapters are put on it.

    Args:
        base: the model.
        heads: "model.<path>" of the heads that the adapter brings.
    """

    def __init__(self, base: VisionBase, heads: Iterable[str]) -> None:
        self._heads = tuple(f"{place}." for place in heads)
        self._boxes = re.compile(base.sight.boxes)
        self._depths = depths(base)
        canonical = base.family.canonical
        self._modules = {f"{BODY}.{canonical(BODY, path)}" for path, _ in base.model.named_modules() if path}
        semantic = base.family.components[BODY].semantic
        self._parts = {part: re.compile(semantic[part]) for part in PARTS if part in semantic}

    def of(self, parameters: Mapping[str, nn.Parameter], *, by_depth: bool = False) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by group: "heads", and "model", or "model.0", "model.1" … from the pixels up.

        Args:
            parameters: by the names that the manager gives.
            by_depth: whether the body is one group a depth.
        """

        def group(name: str) -> str:
            if name.startswith(self._heads):
                return HEADS
            return f"{BODY}.{self._depth(name)}" if by_depth else BODY

        return _gathered(parameters, group)

    def by_part(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[nn.Parameter]]:
        """Return a detector's parameters by group.

        They are "backbone", "encoder", "decoder", "model" for what is in none of them, "boxes" for the heads that
        predict boxes, and "heads" for those of the classes.
        """
        return _gathered(parameters, self._part)

    def decayed(self, groups: Iterable[str], decay: float) -> dict[str, float]:
        """Return decay^(last depth - depth) of the groups that have a depth (arXiv:2106.08254, appendix)."""
        last = max(self._depths.values())
        return {name: decay ** (last - int(name.partition(".")[2])) for name in groups if name != HEADS}

    def _depth(self, name: str) -> int:
        inside = f"{self._place(name).removeprefix(f'{BODY}.')}."
        return next(depth for parameter, depth in self._depths.items() if parameter.startswith(inside))

    def _part(self, name: str) -> str:
        if name.startswith(self._heads):
            return BOXES if self._boxes.search(name.removeprefix(f"{BODY}.")) else HEADS
        path = self._place(name).removeprefix(f"{BODY}.")
        return next((part for part, pattern in self._parts.items() if pattern.search(path)), BODY)

    def _place(self, name: str) -> str:
        """The module that a parameter of an adapter belongs to."""
        while name not in self._modules and "." in name:
            name = name.rpartition(".")[0]
        return name


def _gathered(parameters: Mapping[str, nn.Parameter], group: Callable[[str], str]) -> dict[str, list[nn.Parameter]]:
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found.setdefault(group(name), []).append(parameter)
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> tuple[int, str, int]:
    word, _, depth = name.partition(".")
    return name == HEADS, word, int(depth or 0)

"""How deep in a network a parameter lies, for learning rates that fall towards its input (arXiv:1801.06146, 2106.08254).

A block is an entry of the network's list of layers; in a network of stages, of a stage's list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

_BLOCK = re.compile(r"(?:^|.*?\.)(?:layers?|stages?|blocks?)\.\d+(?:\.(?:layers|blocks)\.\d+)?(?=\.)")


def depths(names: Iterable[str]) -> dict[str, int]:
    """Return the depth of each parameter by its name, of all of a network's names in its order.

    0 lies before the first block (embeddings, stem), B after the last of B - 1 blocks (norm, pooling).
    """
    found: dict[str, re.Match[str] | None] = {name: _BLOCK.match(name) for name in names}
    blocks = list(dict.fromkeys(match[0] for match in found.values() if match))
    place = {block: number for number, block in enumerate(blocks, start=1)}
    result: dict[str, int] = {}
    passed = False
    for name, match in found.items():
        passed = passed or match is not None
        result[name] = place[match[0]] if match else (len(blocks) + 1 if passed else 0)
    return result


def by_depth(model: nn.Module, trained: Sequence[nn.Parameter]) -> dict[int, list[nn.Parameter]]:
    """Return the trained parameters by depth, ascending, each in the order in which it was given."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    place = depths(names.values())
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in trained:
        groups.setdefault(place[names[id(parameter)]], []).append(parameter)
    return dict(sorted(groups.items()))


def deepest(model: nn.Module) -> int:
    """Return the depth of what comes after the last block."""
    found = [match[0] for name, _ in model.named_parameters() if (match := _BLOCK.match(name))]
    return len(set(found)) + 1

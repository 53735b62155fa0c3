"""How deep a layer lies, for learning rates that fall from the head to the pixels."""

from __future__ import annotations

import re

from visionpeft.errors import TargetError, did_you_mean
from visionpeft.models.family import Sight
from visionpeft.models.vision import VisionBase


def depths(base: VisionBase) -> dict[str, int]:
    """Return the depth of every parameter by canonical name, in the model's order.

    Embeddings have 0, the blocks 1, 2, … and n, heads and what follows the last block n + 1. What stands between two
    blocks, as DETR's queries do, counts with the block before it. Adapters may be attached or not.
    """
    sight = base.family.sight or Sight("classify")
    named = base.model.named_parameters(remove_duplicate=False)
    names = [base.family.canonical("model", name) for name, _ in named]
    pattern = re.compile(rf"({sight.blocks})(?=\.)")
    blocks = [match.group() if (match := pattern.match(name)) else "" for name in names]
    number = {block: place for place, block in enumerate(dict.fromkeys(filter(None, blocks)), 1)}
    head = re.compile("|".join([sight.boxes, *(rf"^{re.escape(path)}(\.|$)" for path in sight.heads(base.model))]))
    found: dict[str, int] = {}
    begun = 0
    for name, block in zip(names, blocks, strict=True):
        begun = number.get(block, begun)
        after = not block and begun == len(number)
        found[name] = len(number) + 1 if after or head.search(name) else begun
    return found


def depth_of(base: VisionBase, path: str) -> int:
    """Return the depth of a parameter or module by canonical path, as in `depths`; of a module, that of its first.

    Args:
        base: the base.
        path: "vit.layers.3.mlp", for example; "model." may stand before it.

    Raises:
        TargetError: the model has nothing there; says the nearest name.
    """
    table = depths(base)
    for tried in (path, path.removeprefix("model.")):
        for name, depth in table.items():
            if name == tried or name.startswith(tried + "."):
                return depth
    raise TargetError(f"The base has nothing at '{path}'.{did_you_mean(path, table)}")

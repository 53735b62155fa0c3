"""The repeated blocks of a model, and which of them a lever is pulled on: by size, by order, without running them.

The one table of blocks: what is streamed, computed again, offloaded, shared out or compiled are blocks of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from visionpeft.adapters.slots import Slot
from visionpeft.compute.thrift import Thrift
from visionpeft.errors import ConfigError

_KINDS = re.compile(
    r"ResnetBlock2D|BasicTransformerBlock"  # Stable Diffusion's UNet
    r"|\w*(Encoder|Decoder)Layer"  # CLIP, Whisper, the DETR family, torch's own
    r"|(ViT|DeiT|Beit|Yolos|Dinov2(WithRegisters)?|DINOv3ViT|Swin|Swinv2|ConvNext|ConvNextV2|RfDetr\w*|DINOv3ConvNext)Layer"
    r"|\w*(ResNet(Basic|BottleNeck)|CSPRep|HGNetV2Basic)Layer"  # what detectors look through
)
"""Classes of blocks: each is called once a forward pass, after the one before it."""


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the finest repeated blocks of a model by path, in the order of its modules."""
    modules = [(path, module) for path, module in model.named_modules() if _is_block(module)]
    return {path: module for path, module in modules if not any(map(_is_block, list(module.modules())[1:]))}


def frozen_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return those of the blocks that have frozen weights, none of which is used outside of its block too."""
    uses = _uses(model)
    return {
        path: block
        for path, block in blocks_of(model).items()
        if any(not parameter.requires_grad for parameter in block.parameters())
        and all(uses[parameter] == count for parameter, count in _uses(block).items())
    }


def _uses(model: nn.Module) -> Counter[int]:
    """In how many places of a model each of its parameters is, by its ``id``."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def _is_block(module: nn.Module) -> bool:
    name = type(module).__name__.removeprefix("FSDP")  # of the class that a block has where it is shared out
    return not isinstance(module, Slot) and _KINDS.fullmatch(name) is not None


@dataclass(frozen=True)
class Choice:
    """Which blocks a run's levers are pulled on, by their place among all blocks.

    Attributes:
        streamed: their frozen weights wait in main memory.
        recomputed: their activations are computed again in the backward pass.
        offloaded: their activations wait in main memory; none of the recomputed.
    """

    streamed: frozenset[int]
    recomputed: frozenset[int]
    offloaded: frozenset[int]

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self.streamed or self.recomputed or self.offloaded)


def choose(model: nn.Module, thrift: Thrift) -> Choice:
    """Return the blocks for a run's shares; a share above 0 is at least one block.

    Streamed blocks are spread so that copies and computation alternate, and their bytes, not their number, come to the
    share. Recomputed are those first that keep most for what they compute: activations grow with a block's width,
    operations and weights with its square, so it is those with the fewest weights; nothing before the first block that
    trains is kept at all, so those are left out. Offloaded blocks are spread over what is neither.

    Raises:
        ConfigError: the model has no blocks, or the shares of recomputed and offloaded blocks exceed them together.
    """
    shares = {
        "train.memory.stream": thrift.memory.stream,
        "train.gradient_checkpointing": thrift.recompute,
        "train.memory.offload": thrift.memory.offload,
    }
    blocks = list(blocks_of(model).values())
    for setting, share in shares.items():
        if share > 0 and not blocks:
            raise ConfigError(f"{setting}: a {type(model).__name__} has no blocks for it; set it to 0.")
    learning = list(range(_first_learning(blocks), len(blocks)))
    again = recomputed(learning, [_weights(block) for block in blocks], thrift.recompute)
    return Choice(
        frozenset(spread([_bytes(block) for block in blocks], thrift.memory.stream)),
        frozenset(again),
        frozenset(_offloaded(learning, again, thrift)),
    )


def spread(sizes: Sequence[int], share: float) -> list[int]:
    """Return places whose sizes come to about ``share`` of the whole, evenly over the order; at least one above 0."""
    owed, found = 0.0, list[int]()
    for place, size in enumerate(sizes):
        owed += share * size
        if owed > size / 2:
            found.append(place)
            owed -= size
    return found or ([len(sizes) // 2] if share > 0 and sizes else [])


def recomputed(places: Sequence[int], weights: Sequence[int], share: float) -> list[int]:
    """Return ``share`` of the places (at least one above 0), those with the fewest weights first, equals spread."""
    wanted = max(1, round(share * len(places))) if share > 0 else 0
    found: list[int] = []
    for size in sorted({weights[place] for place in places}):
        equal = [place for place in places if weights[place] == size]
        room = wanted - len(found)
        found += equal if len(equal) <= room else [equal[n * len(equal) // room] for n in range(room)]
        if len(found) == wanted:
            break
    return found


def _offloaded(learning: Sequence[int], again: Sequence[int], thrift: Thrift) -> list[int]:
    share = thrift.memory.offload
    free = [place for place in learning if place not in again]
    wanted = max(1, round(share * len(learning))) if share > 0 else 0
    if wanted > len(free):
        raise ConfigError(
            f"train.gradient_checkpointing ({thrift.recompute:g}) and train.memory.offload ({share:g}) are shares of"
            " the same blocks, and a block's activations are computed again or offloaded: let them come to at most 1."
        )
    return [free[n * len(free) // wanted] for n in range(wanted)]


def _first_learning(blocks: Sequence[nn.Module]) -> int:
    """The place of the first block with something to train; 0 where that is all before the blocks."""
    learns = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    return learns.index(True) if True in learns else 0


def _weights(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters() if not parameter.requires_grad)


def _bytes(block: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in block.parameters() if not p.requires_grad)

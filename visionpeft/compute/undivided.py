"""The repeated blocks of a model: layers of a transformer, residual and attention blocks of a UNet, stages of a CNN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from visionpeft.adapters.heads import HeadSlot
from visionpeft.adapters.slots import Part, Slot, plain


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> block, in the model's order; none holds another, and no weight of one is used outside of it.

    transformers and diffusers name the classes that belong together (``_no_split_modules``): those that come several
    times are blocks, the smallest where they hold each other. Elsewhere they are the members of one class in a list.
    Adapters' slots are passed through; what an adapter's head stands for is no block.
    """
    kinds = Counter(type(module).__name__ for module in model.modules())
    named = {name for name in _named(model) if kinds[name] > 1}
    found = dict(_found(model, "", named))
    shared = _used_elsewhere(model, set(found.values()))
    return {path: block for path, block in found.items() if block not in shared and _frozen(block)}


def _named(model: nn.Module) -> set[str]:
    """The classes that the libraries call undivided, of the model and of the models in it."""
    return {str(name) for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}


def _found(module: nn.Module, path: str, named: set[str]) -> Iterator[tuple[str, nn.Module]]:
    members = Counter(type(plain(child)) for child in module.children())
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for name, child in module.named_children():
        inner, place = plain(child), f"{path}.{name}".lstrip(".")
        if _has_head(child) or isinstance(inner, Part):
            continue
        repeated = listed and members[type(inner)] > 1 and not type(inner).__module__.startswith("torch.nn")
        if (repeated or type(inner).__name__ in named) and not _holds(inner, named):
            yield place, inner
        else:
            yield from _found(inner, place, named)


def _has_head(child: nn.Module) -> bool:
    while isinstance(child, Slot):
        if isinstance(child, HeadSlot):
            return True
        child = child.base
    return False


def _holds(module: nn.Module, named: set[str]) -> bool:
    return any(type(inner).__name__ in named for inner in module.modules() if inner is not module)


def _used_elsewhere(model: nn.Module, found: set[nn.Module]) -> set[nn.Module]:
    """The blocks a parameter of which is reached outside of the block too."""
    users: dict[int, set[nn.Module | None]] = {}

    def visit(module: nn.Module, block: nn.Module | None) -> None:
        block = module if module in found else block
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), set()).add(block)
        for child in module.children():
            visit(child, block)

    visit(model, None)
    return {block for several in users.values() if len(several) > 1 for block in several if block is not None}


def _frozen(block: nn.Module) -> bool:
    return any(not parameter.requires_grad for parameter in block.parameters())

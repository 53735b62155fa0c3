"""A model's repeated blocks, compiled one kind at a time: small kernels join, and equal blocks share what is compiled.

A whole UNet takes minutes to compile, its blocks a fraction: the compiler sees each shape of a block once. What is
compiled is kept on disk, so that a later run only looks it up. Where a block's activations are computed again, what is
compiled is that which is computed twice.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from visionpeft.compute.blocks import blocks_of
from visionpeft.compute.lean import Thrifty, levers_of

_KINDS = 128
"""How many shapes and kinds of blocks are compiled at most; torch would stop at 8."""


def compilable(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are worth compiling, none inside another: transformers', and a UNet's residual ones.

    A UNet's transformer of one block goes whole, with the norm and the reordering around it, where no lever is pulled.
    """
    modules: list[Any] = list(model.modules())
    alone = {
        id(module.transformer_blocks[0]): module
        for module in modules
        if len(getattr(module, "transformer_blocks", ())) == 1 and not getattr(module, "gradient_checkpointing", True)
    }
    blocks = [block for block in blocks_of(model).values() if _pays(block)]
    return [block if levers_of(block) else alone.get(id(block), block) for block in blocks]


def _pays(block: nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(block, GradientCheckpointingLayer) or type(block).__module__.startswith("diffusers.")


def keep_compiled(folder: Path) -> None:
    """Let the compiler keep its results in a folder, unless the environment names another; before it is first used."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


@contextmanager
def compiled(blocks: Iterable[nn.Module], backend: Any = "inductor") -> Generator[None]:
    """Let blocks compute compiled within the context: each shape and kind when it is first met.

    Args:
        blocks: none inside another.
        backend: of ``torch.compile``.
    """
    import torch._dynamo

    mine = [levers_of(block) or block for block in blocks]
    settings = torch._dynamo.config.patch(recompile_limit=_KINDS, accumulated_recompile_limit=8 * _KINDS)
    try:
        with settings:
            for block in mine:
                block.compile(backend=backend, dynamic=False)
            yield
    finally:
        for block in mine:
            if isinstance(block, Thrifty):
                block.as_written()
            else:
                block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]


def as_written() -> AbstractContextManager[None]:
    """Return the context in which compiled blocks compute as they are written: other shapes are not worth compiling."""
    return cast(Any, torch.compiler).set_stance("force_eager")

"""A model whose blocks are kept thriftily: weights streamed, activations computed again or offloaded."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionpeft.adapters.layers import Branch
from visionpeft.compute.blocks import blocks_of, choose
from visionpeft.compute.lanes import recording
from visionpeft.compute.offload import Offloading
from visionpeft.compute.streaming import Lookup, Streaming
from visionpeft.compute.thrift import Thrift

Forward = Callable[..., Any]
_CACHES = ("past_key_values", "layer_past")


class Lean:
    """Pulls a run's levers on the blocks of a model; losses and gradients stay the same to the last bit.

    Parameters, names and ``state_dict()`` stay as they are; a streamed weight is in main memory but while its block
    computes. Adapters stay on the device.

    Args:
        model: with its adapters; its frozen weights may be anywhere, and those that are streamed are moved out.
        device: where it computes.
        thrift: the levers.

    Attributes:
        choice: the blocks that they were pulled on.
        streaming: owns the streamed weights; None where none are.

    Raises:
        ConfigError: the model has no such blocks, or not so many.
    """

    def __init__(self, model: nn.Module, device: torch.device, thrift: Thrift) -> None:
        self._model, self._device = model, device
        self.choice = choose(model, thrift)
        self._blocks = list(blocks_of(model).values())
        streamed = sorted(self.choice.streamed)
        weights = [self._blocks[place] for place in streamed]
        self.streaming = Streaming(weights, model, device) if weights else None
        self._offloading = Offloading(device) if self.choice.offloaded else None
        for place in sorted(self.choice.streamed | self.choice.recomputed | self.choice.offloaded):
            block: Any = self._blocks[place]
            block.forward = Thrifty(
                block,
                self.streaming if place in self.choice.streamed else None,
                streamed.index(place) if place in self.choice.streamed else 0,
                self._offloading if place in self.choice.offloaded else None,
                recomputes=place in self.choice.recomputed,
            )

    def move(self, device: torch.device) -> None:
        """Move all of the model that is not streamed."""
        streaming = self.streaming

        def moved(tensor: Tensor) -> Tensor:
            return tensor if streaming is not None and streaming.keeps(tensor) else tensor.to(device)

        self._model._apply(moved)  # pyright: ignore[reportPrivateUsage]

    def undo(self) -> None:
        """Make the model an ordinary one again, all of it on the device."""
        for block in self._blocks:
            thrifty = levers_of(block)
            if thrifty is not None:
                thrifty.leave()
        if self.streaming is not None:
            self.streaming.recall()
        self.streaming = None
        self.move(self._device)

    def __str__(self) -> str:
        """What was done, for a line to the user: "12 of 32 blocks streamed (1.5 GiB in main memory)"."""
        count = len(self._blocks)
        done = [f"{len(self.choice.streamed)} streamed"] if self.choice.streamed else []
        done += [f"{len(self.choice.recomputed)} computed again"] if self.choice.recomputed else []
        done += [f"{len(self.choice.offloaded)} offloaded"] if self.choice.offloaded else []
        return f"of {count} blocks {', '.join(done) or 'none changed'}"


class Thrifty:
    """A block's forward pass with its levers pulled; it stands in the block as its own ``forward``.

    What it does around the block's own forward pass is never compiled; that pass itself may be.
    """

    def __init__(
        self, block: nn.Module, streaming: Streaming | None, place: int, offloading: Offloading | None, *,
        recomputes: bool,
    ) -> None:  # fmt: skip
        self._block, self._instead = block, vars(block).get("forward")
        self._written: Forward = block.forward
        self._forward = self._written
        self._streaming, self._place, self._offloading, self._recomputes = streaming, place, offloading, recomputes
        self._drawing = [module for module in block.modules() if _rate(module) > 0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block's own forward pass returns."""
        if not torch.is_grad_enabled():
            return self._computed(*args, **kwargs)
        if self._recomputes:
            return self._recomputed(*args, **kwargs)
        with self._packing():
            return self._computed(*args, **kwargs)

    def compile(self, **options: Any) -> None:
        """Compute the block's own forward pass compiled, now and again; options are ``torch.compile``'s."""
        self._forward = torch.compile(self._written, **options)

    def as_written(self) -> None:
        """Compute it as it is written."""
        self._forward = self._written

    def leave(self) -> None:
        """Give the block its own forward pass back."""
        block: Any = self._block
        del block.forward
        if self._instead is not None:
            block.forward = self._instead

    def _computed(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self._streaming is None else self._streaming.lent(self._place):
            return self._forward(*args, **kwargs)

    def _recomputed(self, *args: Any, **kwargs: Any) -> Any:
        """Compute now and, when the backward pass gets here, once more (arXiv:1604.06174)."""
        draws = any(module.training for module in self._drawing)
        if draws and recording(_device_of(args, kwargs)):
            raise RuntimeError("a block that is computed again has dropout, whose draws a recorded step cannot repeat.")
        backward = False

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal backward
            again, backward = backward, True
            with nullcontext() if self._streaming is None else self._streaming.lent(self._place, backward=again):
                return self._forward(*args, **kwargs)

        # a cache would take the same keys twice, and a step that trains needs none
        kwargs |= {name: None for name in _CACHES if name in kwargs}
        kwargs |= {"use_cache": False} if "use_cache" in kwargs else {}
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)

    @contextmanager
    def _packing(self) -> Generator[None]:
        """Keep for the backward pass places in the block instead of streamed weights, and activations elsewhere."""
        streaming, offloading = self._streaming, self._offloading
        if streaming is None and offloading is None:
            yield
            return
        stash = None if offloading is None else offloading.stash(self._block)

        def pack(tensor: Tensor) -> Any:
            kept = None if streaming is None else streaming.packed(tensor)
            if kept is None and offloading is not None and stash is not None:
                kept = offloading.packed(stash, tensor)
            return tensor if kept is None else kept

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            if isinstance(kept, Lookup) and streaming is not None:
                return streaming.unpacked(kept)
            return cast(Callable[[], Tensor], kept)()

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


def levers_of(block: nn.Module) -> Thrifty | None:
    """Return what stands in a block's place for its forward pass; None where no lever is pulled on it."""
    forward = vars(block).get("forward")
    return forward if isinstance(forward, Thrifty) else None


def _rate(module: nn.Module) -> float:
    """The share that a module drops at random while it trains; 0 where nothing is drawn."""
    if isinstance(module, Branch):
        return module.dropout
    if isinstance(module, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
        return module.p
    named = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
    return max(named, default=0.0)


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")

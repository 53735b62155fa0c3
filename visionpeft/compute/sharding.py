"""A frozen base shared out over processes: each keeps a part of every block's weights, all gather a block to use it.

The parts are those of torch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277). Adapters, heads and what stands outside of
the blocks are whole on every process, so an adapter is trained, saved and read as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from visionpeft.adapters.layers import Shift
from visionpeft.adapters.methods import is_quantized
from visionpeft.adapters.slots import Part
from visionpeft.compute.blocks import frozen_blocks
from visionpeft.errors import ConfigError, MissingExtraError, TrainingError

SHARDED = "steps are not recorded, which makes them slower: the weights of a sharded base are gathered within them."
"""What is said where steps would be recorded as CUDA graphs."""
_OLDEST = Version("2.7")  # of torch: before it, FSDP2 could not leave the adapters alone
_DONE = -1
_PATIENCE = timedelta(hours=2)  # of the others, while the main process works alone
Fill = Callable[[Tensor], object]


@dataclass(frozen=True)
class Shared:
    """What was shared out of a model.

    Attributes:
        blocks: how many.
        whole: bytes of the weights of all blocks.
        here: bytes of them on this process.
        outside: bytes of the frozen weights that are whole on every process.
    """

    blocks: int
    whole: int
    here: int
    outside: int


class Sharding:
    """Shares the frozen blocks of models out over all processes, which take part in every forward pass from then on.

    Args:
        device: of this process: a CUDA device, or the CPU.

    Raises:
        ConfigError: there is only one process.
        MissingExtraError: torch is too old.
    """

    def __init__(self, device: torch.device) -> None:
        if Version(torch.__version__) < _OLDEST:
            raise MissingExtraError(f"sharding needs torch {_OLDEST} or newer, this is {torch.__version__}.")
        if not distributed.is_initialized() or distributed.get_world_size() < 2:
            raise ConfigError(
                "train.shard shares the base out over several processes, and there is one: start it with"
                " `accelerate launch --num_processes N` or `torchrun --nproc_per_node N`, or set train.shard to off."
            )
        self.device, self.world = device, distributed.get_world_size()
        self._first = distributed.get_rank() == 0
        self._mesh = init_device_mesh(device.type, (self.world,))
        self._blocks: list[Any] = []
        self._orders: list[_Order] = []
        self._alone = False
        # words go by the main memory's own way: a process that waits for one waits for no device
        self._line: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        self._word = torch.zeros((), dtype=torch.long)

    def shard(self, model: nn.Module, dtype: torch.dtype | None = None, fill: Fill | None = None) -> Shared:
        """Share a model out, block by block: never more than one whole block of it is on the device.

        Args:
            model: on the CPU or, for random weights, on the "meta" device; with its adapters already, if there are any.
            dtype: of its weights on the device; None leaves them as they are. Adapters stay float32.
            fill: gives a part of a weight that is on the "meta" device its values, in place.

        Raises:
            ConfigError: it has no blocks, its weights are quantized, or an adapter changes all of them.
        """
        found = frozen_blocks(model)
        _refuse(model, found)
        kept = _kept(model)
        begin, order = len(self._blocks), _Order()
        for block in found.values():
            self._share(block, dtype, kept, fill)
            block.register_forward_pre_hook(self._before(len(self._blocks), order), prepend=True)
            self._blocks.append(block)
        self._orders.append(order)
        _together(self._blocks[begin:], self._mesh)
        _materialise(model, self.device, fill)
        nn.Module.to(model, device=self.device, dtype=dtype)  # diffusers' own `to` warns of every change of type
        return _account(model, self._blocks[begin:])

    def _share(self, block: nn.Module, dtype: torch.dtype | None, kept: set[nn.Parameter], fill: Fill | None) -> None:
        from torch.distributed.fsdp import fully_shard

        block.to(dtype=dtype)
        for parameter in block.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 takes no others, as convolutions may have
        shared: Any = fully_shard(block, mesh=self._mesh, reshard_after_forward=True, ignored_params=kept)
        shared.set_modules_to_backward_prefetch([shared])  # itself, which is there: nothing yet
        _materialise(block, self.device, fill)

    def _before(self, number: int, order: _Order) -> Callable[..., None]:
        """What happens before a block's forward pass, ahead of its gathering."""

        def announce(block: nn.Module, args: tuple[Any, ...]) -> None:
            del args
            if self._alone:
                if torch.is_grad_enabled():
                    raise TrainingError("gradients through a sharded base need all processes, and one runs alone.")
                self._tell(number)
            elif torch.is_grad_enabled():
                order.note(block)

        return announce

    @contextmanager
    def main_first(self) -> Generator[None]:
        """Let the main process do this alone first, at its own pace; the others hand their parts over, then follow.

        No gradients are computed within. The main process may run the sharded models as often as it likes, the others
        must not run them, or find that all is done already.
        """
        if not self._first:
            self._serve()
            yield
            return
        try:
            self._hold(alone=True)
            yield
        finally:
            self._hold(alone=False)
            self._tell(_DONE)

    def _hold(self, *, alone: bool) -> None:
        """Alone, nothing is fetched ahead, since the others learn what is wanted from block to block."""
        self._alone = alone
        for order in self._orders:
            order.fetch_ahead(not alone)

    def _tell(self, number: int) -> None:
        distributed.broadcast(self._word.fill_(number), src=0, group=self._line)

    @torch.no_grad()
    def _serve(self) -> None:
        """Take part in the gathering of each block that the main process announces, until it is done."""
        while True:
            distributed.broadcast(self._word, src=0, group=self._line)
            number = int(self._word.item())
            if number == _DONE:
                return
            self._blocks[number].unshard()
            self._blocks[number].reshard()


class _Order:
    """The order in which a model's blocks are used, learned from the first step that trains: the next is fetched ahead.

    Explicit orders replace the one that FSDP2 notes for itself, in which the main process alone would find the forward
    passes that it made alone.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, None] = {}
        self._whole = False

    def note(self, block: Any) -> None:
        """Note that a block is used; when one is used again the order is known."""
        if self._whole:
            return
        if block not in self._seen:
            self._seen[block] = None
            return
        self._whole = True
        used = list(self._seen)
        for before, after in pairwise(used):
            after.set_modules_to_backward_prefetch([before])
        self.fetch_ahead(True)

    def fetch_ahead(self, ahead: bool) -> None:
        """Fetch the next block while one is computed, once the order is known, or do not."""
        used = list(self._seen) if self._whole else []
        for before, after in pairwise(used):
            before.set_modules_to_forward_prefetch([after] if ahead else [])


def _refuse(model: nn.Module, found: dict[str, nn.Module]) -> None:
    kind = type(model).__name__
    if not found:
        raise ConfigError(f"train.shard: a {kind} has no repeated blocks to share out; set it to off.")
    if skipping := [path for path, module in model.named_modules() if getattr(module, "layerdrop", 0.0)]:
        raise ConfigError(
            f"train.shard: '{skipping[0]}' of the {kind} skips layers by chance (layerdrop), each process others, and"
            " would wait for those that another skips: set layerdrop to 0 in its configuration, or train.shard to off."
        )
    for path, block in found.items():
        for module in block.modules():
            if isinstance(module, Shift):
                raise ConfigError(
                    f"train.shard: full tuning keeps a difference as large as the weights, whole on every process"
                    f" ('{path}' for one), so sharing the base out saves nothing; use lora, or set train.shard to off."
                )
            if not isinstance(module, Part) and is_quantized(module):
                raise ConfigError(
                    f"train.shard: '{path}' of the {kind} is quantized, and quantized weights are not shared out: load"
                    " the base in 16 or 32 bit, or set train.shard to off."
                )


def _kept(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that stay whole wherever they are: of adapters and heads, what trains, and single numbers."""
    adapters = {p for part in model.modules() if isinstance(part, Part) for p in part.parameters()}
    return adapters | {p for p in model.parameters() if p.requires_grad or p.ndim == 0}


def _together(shared: list[Any], mesh: Any) -> None:
    """Let blocks share streams and memory, whichever is run first.

    They get a module of their own above them: FSDP2 changes the class of what it shares out, and the class of a whole
    model is what libraries know it by.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    above: Any = nn.Sequential(*shared)
    fully_shard(above, mesh=mesh, ignored_params={p for p in above.parameters() if not isinstance(p, DTensor)})
    above._get_fsdp_state()._lazy_init()


@torch.no_grad()
def _materialise(module: nn.Module, device: torch.device, fill: Fill | None) -> None:
    """Put a part of each parameter, or the whole one, where there is only its shape so far."""
    from torch.distributed.tensor import DTensor

    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta and fill is not None:
                made = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
                fill(made.to_local() if isinstance(made, DTensor) else made)
                owner.register_parameter(name, made)


def _account(model: nn.Module, shared: list[nn.Module]) -> Shared:
    from torch.distributed.tensor import DTensor

    whole = here = outside = 0
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            whole += parameter.numel() * parameter.element_size()
            here += parameter.to_local().numel() * parameter.element_size()
        elif not parameter.requires_grad:
            outside += parameter.numel() * parameter.element_size()
    return Shared(len(shared), whole, here, outside)

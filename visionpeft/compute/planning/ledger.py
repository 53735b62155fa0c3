"""What a computation allocates, frees and computes, written down while it runs: with or without values.

Every storage is an entry with its bytes; every kernel has its products, the bytes that it moves, and its class. What is
kept for the backward pass need not be guessed: the graph keeps it, and it is freed when the graph lets go.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Kind = Literal["matmul", "conv", "conv back", "attention", "attention back", "norm", "special", "moving"]
"""What a kernel does: products of matrices, convolutions and attention and their gradients; normalising; functions
that take many operations a number; all else moves bytes."""


class Kernel(NamedTuple):
    """One kernel: its class, floating-point operations, bytes read and written, and whether in half precision."""

    name: str
    kind: Kind
    flops: int
    moved: int
    half: bool
    stage: str


class Event(NamedTuple):
    """An allocation (bytes above 0), or what frees it (0)."""

    storage: int
    size: int
    stage: str


@dataclass
class Trace:
    """What was done, in order."""

    events: list[Event] = field(default_factory=list[Event])
    kernels: list[Kernel] = field(default_factory=list[Kernel])

    def at(self, stage: str) -> list[Kernel]:
        """Return the kernels of a stage."""
        return [kernel for kernel in self.kernels if kernel.stage == stage]


_MADE_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "view", "_unsafe_view",
              "lift_fresh", "set_", "expand", "_to_copy_same"}  # fmt: skip
_ATTENTION = (4, 10)
"""Operations of attention for each number of the queries and each key, forward and backward: two products, and five."""


def key_of(storage: torch.UntypedStorage) -> int:
    """What tells a storage from others while it lives."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


class Ledger(TorchDispatchMode):
    """Writes down what is computed within it.

    Args:
        kind: the type of the device whose tensors are written down: "meta" for such without values.
        here: which of them count; None counts all.

    Attributes:
        trace: what was written.
        stage: the name under which the next entries come; set it as work goes on.
        live: bytes of the entries that were not freed yet.
    """

    def __init__(self, kind: str = "meta", here: Callable[[Tensor], bool] | None = None) -> None:
        super().__init__()
        self.kind, self.here = kind, here
        self.trace = Trace()
        self.stage = ""
        self.live = 0
        self._known: dict[int, int] = {}
        self._next = 0

    def enter(self, tensor: Tensor) -> int:
        """Take a tensor's storage into account, where it is not yet; return its number."""
        self._enter(tensor)
        return self._known[key_of(tensor.untyped_storage())]

    def number(self, tensor: Tensor) -> int | None:
        """The number of the entry that a tensor lies in, where there is one."""
        return self._known.get(key_of(tensor.untyped_storage()))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do one operation and write it down."""
        del types
        with DisableTorchFunction():  # tensors are to say where they are, whatever is pretended
            return self._done(func, args, kwargs or {})

    def _done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        taken = list(self._own((args, kwargs)))
        # optimizers' fused kernels change what they are given, and know no tensors without values
        still = self.kind == "meta" and func._schema.name.startswith("aten::_fused_")
        out = None if still else func(*args, **kwargs)
        given = list(self._own(out))
        if not given and not (taken and func._schema.is_mutable):
            return out
        for tensor in taken:
            self._enter(tensor)
        new = [tensor for tensor in given if self._enter(tensor)]
        if new or func._schema.is_mutable:
            self._note(func, taken, given, args, kwargs, out)
        return out

    def _own(self, values: Any) -> Iterator[Tensor]:
        """The tensors on the device among values."""
        here = self.here
        found = (v for v in tree_leaves(values) if isinstance(v, Tensor) and v.device.type == self.kind)
        return (v for v in found if here is None or here(v))

    def _enter(self, tensor: Tensor) -> bool:
        """Make an entry for a tensor's storage where there is none; whether there was none."""
        storage = tensor.untyped_storage()
        key = key_of(storage)
        if key in self._known:
            return False
        size = storage.nbytes()
        number = self._next = self._next + 1
        self._known[key] = number
        self.trace.events.append(Event(number, max(1, size), self.stage))
        self.live += size
        weakref.finalize(storage, self._left, key, number, size)
        return True

    def _left(self, key: int, number: int, size: int) -> None:
        if self._known.get(key) == number:
            del self._known[key]
        self.live -= size
        self.trace.events.append(Event(number, 0, self.stage))

    def _note(self, func: Any, taken: list[Tensor], given: list[Tensor], args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name.partition("::")[2]
        if name in _MADE_FREE:
            return
        kind = kind_of(name)
        half = any(t.dtype in (torch.float16, torch.bfloat16) for t in taken)
        moved = sum(map(_size, taken)) + sum(map(_size, given))
        flops = 0 if kind in ("moving", "norm", "special") else _flops(func, name, args, kwargs, out)
        self.trace.kernels.append(Kernel(name, kind, flops, moved, half, self.stage))


_SPECIAL = ("gelu", "silu", "sigmoid", "tanh", "softmax", "exp", "log", "erf", "sin", "cos", "pow", "rsqrt")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmm_", "linear", "mv", "addmv", "dot")


def kind_of(name: str) -> Kind:
    """Return the class of an operation of torch by its name."""
    back = "backward" in name
    if "attention" in name:
        return "attention back" if back else "attention"
    if "conv" in name:
        return "conv back" if back else "conv"
    if name in _PRODUCTS:
        return "matmul"
    if "norm" in name:
        return "norm"
    return "special" if name.strip("_").startswith(_SPECIAL) else "moving"


def _flops(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    if "attention" in name:
        back = "backward" in name
        query, key = args[1:3] if back else args[:2]
        return _ATTENTION[back] * query.numel() * key.shape[2]
    if name == "addmm_":
        return 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0


def _size(tensor: Tensor) -> int:
    """Bytes that a kernel reads or writes of a tensor: what is repeated by a stride of 0 lies there once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

"""Tensors without values that answer as if they were on a device: what runs on a GPU is run without one.

Models and batches are on torch's meta device, which knows shapes and types alone. While this is active they say that
they are elsewhere, so that code that looks takes the path that it would take there; autocast, which knows no meta
device, is done here by the same lists of operations; and attention keeps what a kernel with linear memory keeps.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_map

from visionpeft.compute import residence
from visionpeft.compute.planning.ledger import key_of

META = torch.device("meta")

_LOW: tuple[Callable[..., Any], ...] = (
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, torch.conv1d, torch.conv2d,
    torch.matmul, torch.mm, torch.bmm, torch.baddbmm, torch.addmm, torch.addbmm, torch.addmv, torch.mv, torch.einsum,
    torch.prelu, torch.chain_matmul, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.baddbmm,
    Tensor.addmm, Tensor.mv, F.prelu,
)  # fmt: skip
"""What autocast computes in the lower precision on a CUDA device (torch/aten/src/ATen/autocast_mode.h)."""

_HIGH: tuple[Callable[..., Any], ...] = (
    F.layer_norm, F.group_norm, torch.layer_norm, torch.group_norm, F.softmax, torch.softmax, Tensor.softmax,
    F.log_softmax, torch.log_softmax, Tensor.log_softmax, F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss,
    F.smooth_l1_loss, F.huber_loss, F.kl_div, F.cosine_similarity, torch.cosine_similarity, torch.cdist,
    F.binary_cross_entropy_with_logits, F.softplus,
    torch.norm, Tensor.norm, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.log1p, Tensor.log1p, torch.expm1,
    torch.pow, Tensor.pow, Tensor.__pow__, torch.reciprocal, Tensor.reciprocal, torch.rsqrt, Tensor.rsqrt,
    torch.sum, Tensor.sum, torch.prod, Tensor.prod, torch.cumsum, Tensor.cumsum, torch.cumprod, Tensor.cumprod,
    torch.sinh, torch.cosh, torch.tan, torch.acos, torch.asin, torch.renorm, F.normalize,
)  # fmt: skip
"""What autocast computes in float32."""

_REMEMBERS = type(lru_cache(lambda: None))
_MOVES = {Tensor.pin_memory: "cpu", Tensor.cpu: "cpu", Tensor.cuda: "cuda"}


class Pretend(TorchFunctionMode):
    """Within it, tensors of the meta device say that they are on another, and autocast holds for them.

    Args:
        device: where they say they are; none of its kind need be in this machine.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: dict[int, str] = {}
        kind: Any = Tensor
        self._answers: dict[Any, Callable[[], Any]] = {
            kind.device.__get__: lambda: self.device,
            kind.is_cuda.__get__: lambda: self.device.type == "cuda",
            kind.is_cpu.__get__: lambda: self.device.type == "cpu",
        }

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer for the device, or do the operation without values."""
        del types
        if func in self._answers:
            return self._answers[func]() if args[0].is_meta else func(*args)
        return self._done(func, args, kwargs or {})

    def _done(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in (torch.device, Tensor.new_tensor):  # the latter has values, which are looked at
            return func(*args, **kwargs)
        if func is Tensor.__bool__ and args[0].is_meta:
            return True  # whether all are finite, or all of a picture is there: yes
        if func is Tensor.backward:
            return self._backward(args[0])
        if func in _MOVES or func is Tensor.to:
            return self._moved(_MOVES.get(func), args, kwargs)
        if func is not torch.empty_like and getattr(func, "__name__", "") != "__get__":
            args, kwargs = self._without_values((args, kwargs))
        if func is F.scaled_dot_product_attention:
            return attention(*self._lowered(args), **self._lowered(kwargs))
        if torch.is_autocast_enabled(self.device.type):
            args, kwargs = self._as_autocast(func, args, kwargs)
        else:
            self._cast.clear()
        return func(*args, **kwargs)

    def here(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device: it was made there, or moved there last."""
        return self._places.get(key_of(tensor.untyped_storage()), self.device.type) == self.device.type

    def _backward(self, loss: Tensor) -> None:
        """The backward pass; what runs within it is pretended too, which torch's own entry would not let be."""
        engine: Any = torch.autograd.Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
        with self:
            gradient = torch.ones_like(loss)
            engine.run_backward((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)

    def _moved(self, place: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Move a tensor, which only notes where it is; its type may change on the way."""
        asked = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device | str)]
        place = place or (torch.device(asked[0]).type if asked else None)
        if place is None:
            return Tensor.to(*args, **kwargs)
        rest = [value for value in args[1:] if isinstance(value, torch.dtype)]
        dtype = kwargs.get("dtype") or (rest[0] if rest else args[0].dtype)
        return self._placed(args[0], torch.device(place).type, dtype)

    def _placed(self, tensor: Tensor, place: str, dtype: torch.dtype) -> Tensor:
        place = self.device.type if place == "meta" else place
        before = self._places.get(key_of(tensor.untyped_storage()), "meta")
        if place == before or (tensor.requires_grad and not tensor.is_leaf):
            return tensor.to(META, dtype=dtype)
        if place == self.device.type:
            moved = tensor.to(META, dtype=dtype, copy=True)
        else:
            with _disable_current_modes():  # what is elsewhere is no allocation here
                moved = torch.empty_like(tensor, dtype=dtype, device=META)
        self._note_place(moved.untyped_storage(), place)
        return moved

    def _note_place(self, storage: torch.UntypedStorage, place: str) -> None:
        self._places[key_of(storage)] = place
        weakref.finalize(storage, self._places.pop, key_of(storage), None)

    def _without_values(self, values: Any) -> Any:
        """The same with devices named meta, and with tensors that have values turned to some without."""
        mixed = False

        def look(value: Any) -> Any:
            nonlocal mixed
            mixed = mixed or (isinstance(value, Tensor) and value.is_meta)
            if isinstance(value, torch.device):
                return META
            return META if isinstance(value, str) and value.partition(":")[0] in ("cuda", "cpu") else value

        values = tree_map(look, values)
        if not mixed:
            return values
        return tree_map(_emptied, values)

    def _as_autocast(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _LOW:
            return self._lowered(args), self._lowered(kwargs)
        if func in _HIGH:
            return tree_map(_raised, args), tree_map(_raised, kwargs)
        return args, kwargs

    def _lowered(self, values: Any) -> Any:
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return values
        dtype = torch.get_autocast_dtype(kind)

        def low(value: Any) -> Any:
            return self._low(value, dtype)

        return tree_map(low, values)

    def _low(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype in (dtype, torch.float64):
            return value
        if not (value.is_leaf and value.requires_grad and value.dtype == torch.float32):
            return value.to(dtype)
        known = self._cast.get(id(value))  # autocast keeps what it makes of weights that train
        if known is None or known[0] is not value:
            known = self._cast[id(value)] = (value, value.to(dtype))
        return known[1]


@contextmanager
def as_on(device: torch.device) -> Generator[None]:
    """Let torch itself go along: autocast for a device that this machine lacks, and recomputation without values.

    Autocast refuses where there is no CUDA, and what is recomputed is compared by its device too, which is told now
    truly and now not.
    """
    common: Any = torch.cuda.amp.common
    checks: Any = torch.utils.checkpoint._allowed_determinism_checks_to_fns  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    lacking = device.type == "cuda" and not torch.cuda.is_available()
    # how much memory is free here says nothing of the card that is planned for
    places: list[tuple[Any, str, Any]] = [(checks, "default", _shape_and_type), (residence, "device_memory", _unknown)]
    if lacking:
        places += [(common, "amp_definitely_not_available", lambda: False),
                   (torch.cuda, "is_bf16_supported", _yes)]  # fmt: skip
    before = [_put(*place) for place in places]
    try:
        yield
    finally:
        for (holder, name, _), value in zip(places, before, strict=True):
            _put(holder, name, value)
        _forget_results()


def _forget_results() -> None:
    """Let what the model libraries remember of calls go: positions without values would meet real tensors later."""
    for found in gc.get_objects():
        if type(found) is _REMEMBERS and str(found.__module__).startswith(("transformers.models", "diffusers.models")):
            found.cache_clear()


def _put(holder: Any, name: str, value: Any) -> Any:
    """Put a value in place of another, of a table or a module; return the other."""
    if isinstance(holder, dict):
        before = holder[name]
        holder[name] = value
        return before
    before = getattr(holder, name)
    setattr(holder, name, value)
    return before


def _unknown(device: torch.device) -> None:
    del device


def _shape_and_type(tensor: Tensor) -> dict[str, Any]:
    return {"shape": tensor.shape, "dtype": tensor.dtype}


def _yes(*about: Any) -> bool:
    del about
    return True


def _emptied(value: Any) -> Any:
    return value.to(META) if isinstance(value, Tensor) and not value.is_meta else value


def _raised(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if low else value


class _Attention(torch.autograd.Function):
    """Keeps queries, keys, values, the output and one number a row, as kernels with linear memory do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, rows = torch.ops.visionpeft.attention(q, k, v)
        ctx.save_for_backward(q, k, v, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return torch.ops.visionpeft.attention_backward(gradients[0], *ctx.saved_tensors)


@torch.library.custom_op("visionpeft::attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # kernels write [batch, tokens, heads, width], and give it turned
    batch, heads, tokens, width = q.shape[0], q.shape[1], q.shape[2], v.shape[-1]
    out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
    return out, q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("visionpeft::attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError


@_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del gradient, out, rows
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, **more: Any,
) -> Tensor:  # fmt: skip
    """Return what attention gives, [batch, heads, tokens, width], as a kernel with linear memory computes it."""
    del attn_mask, dropout_p, is_causal, more
    return _Attention.apply(query, key, value)  # pyright: ignore[reportReturnType]

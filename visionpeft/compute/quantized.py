"""A frozen base in 8 or 4 bits: large layers keep codes, and make their weight anew for each product.

Nothing is kept for the backward pass but the codes, which are there anyway: the weight is made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_input, conv2d_input

from visionpeft.adapters.coded import Coded
from visionpeft.adapters.heads import HeadSlot
from visionpeft.adapters.layers import Shift
from visionpeft.adapters.slots import Slot
from visionpeft.compute.codes import BLOCK, CODES, OF_CONVOLUTIONS, Code
from visionpeft.compute.memory import amount
from visionpeft.errors import ConfigError

LEAST = 1024
"""Weights that a layer must have to be worth a code."""
ENDS = 16
"""A layer with fewer inputs or outputs stays as it is: a model begins and ends with such, and they are small."""


class Operation(Protocol):
    """What a layer does with its weight."""

    def rows(self, weight: Tensor) -> Tensor:
        """Return the weight as [out, columns]."""
        ...

    def shaped(self, flat: Tensor) -> Tensor:
        """Return the weight of its numbers in the order of ``rows``."""
        ...

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output."""
        ...

    def backward(self, gradient: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return the gradient of an input of this size."""
        ...


@dataclass(frozen=True)
class Linear:
    """``x Wᵀ + b``; the shape of W is [out, in]."""

    shape: tuple[int, ...]

    def rows(self, weight: Tensor) -> Tensor:
        """Return W."""
        return weight

    def shaped(self, flat: Tensor) -> Tensor:
        """Return W."""
        return flat.view(self.shape)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x Wᵀ + b``."""
        return F.linear(x, weight, bias)

    def backward(self, gradient: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return ``g W``."""
        del size
        return gradient @ weight


@dataclass(frozen=True)
class Convolution:
    """A convolution of one or two dimensions; the shape of W is [out, in / groups, *kernel].

    Its rows have the inputs last, so that what is made lies in memory as channels-last products want it.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def rows(self, weight: Tensor) -> Tensor:
        """Return W as [out, kernel · in]."""
        return weight.movedim(1, -1).flatten(1)

    def shaped(self, flat: Tensor) -> Tensor:
        """Return W, channels last."""
        out, inputs, *kernel = self.shape
        return flat.view(out, *kernel, inputs).movedim(-1, 1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``W ∗ x + b``."""
        convolve: Any = F.conv1d if weight.ndim == 3 else F.conv2d
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, gradient: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
        """Return the transposed convolution of g."""
        back: Any = conv1d_input if weight.ndim == 3 else conv2d_input
        return back(size, weight, gradient, self.stride, self.padding, self.dilation, self.groups)


class _Product(torch.autograd.Function):
    """An operation with a weight that is made of what is kept, and made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, operation: Operation, code: Code, *stored: Tensor) -> Tensor:
        ctx.save_for_backward(*stored)
        ctx.operation, ctx.code, ctx.size = operation, code, x.shape
        return operation.forward(x, operation.shaped(code.decode(stored, x.dtype)), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient, operation = gradients[0], ctx.operation
        stored = ctx.saved_tensors  # once: where activations are recomputed, they are given out once
        weight = operation.shaped(ctx.code.decode(stored, gradient.dtype))
        return (operation.backward(gradient, weight, ctx.size), None, None, None, *(None for _ in stored))


class CodedProduct(Coded):
    """The frame of coded layers: the weight of another layer in a code, and that layer's operation.

    Args:
        layer: whose weight it takes over, rounded; its bias is shared.
        operation: what it does.
        code: how the weight is kept.
        device: where the code is made and stays.
    """

    def __init__(self, layer: nn.Module, operation: Operation, code: Code, device: torch.device | None = None) -> None:
        nn.Module.__init__(self)
        weight, bias = layer.get_parameter("weight").detach(), layer._parameters.get("bias")
        self.operation, self.code, self.dtype = operation, code, weight.dtype
        kept = code.encode(operation.rows(weight.to(device or weight.device, torch.float32)).contiguous())
        self.codes = nn.Parameter(kept.pop("codes"), requires_grad=False)
        for name, buffer in kept.items():
            self.register_buffer(name, buffer)
        self.register_parameter("bias", bias)
        self.training = layer.training

    def made(self, stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return the weight of what is kept, in a type."""
        return self.operation.shaped(self.code.decode(stored, dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer would, in the type that it would compute in."""
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        bias = self._parameters["bias"]
        cast = None if bias is None else bias.to(x.dtype)
        return _Product.apply(x, cast, self.operation, self.code, *self.stored())  # pyright: ignore[reportReturnType]


class CodedLinear(CodedProduct, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A frozen linear layer in a code."""

    def __init__(self, layer: nn.Linear, code: Code, device: torch.device | None = None) -> None:
        super().__init__(layer, Linear(tuple(layer.weight.shape)), code, device)
        self.in_features, self.out_features = layer.in_features, layer.out_features


class _CodedConvolution(CodedProduct):
    """What frozen convolutions in a code share."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, code: Code, device: torch.device | None = None) -> None:
        operation = Convolution(
            tuple(layer.weight.shape), layer.stride, _numbers(layer.padding), layer.dilation, layer.groups
        )
        super().__init__(layer, operation, code, device)
        for name in _OF_CONVOLUTIONS:
            setattr(self, name, getattr(layer, name))


class CodedConv1d(_CodedConvolution, nn.Conv1d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A frozen convolution of one dimension in a code."""


class CodedConv2d(_CodedConvolution, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A frozen convolution of two dimensions in a code."""


_OF_CONVOLUTIONS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding",
    "groups", "padding_mode", "_reversed_padding_repeated_twice",
)  # fmt: skip
_CODED: dict[type[nn.Module], Any] = {nn.Linear: CodedLinear, nn.Conv1d: CodedConv1d, nn.Conv2d: CodedConv2d}


def coded(layer: nn.Module, name: str, device: torch.device | None = None) -> CodedProduct:
    """Return a linear layer or convolution in the code of this name, on a device, or where the layer is."""
    own = name if isinstance(layer, nn.Linear) else OF_CONVOLUTIONS.get(name, name)
    return _CODED[type(layer)](layer, CODES[own], device)


@dataclass(frozen=True)
class Quantized:
    """What a code was put in place of.

    Attributes:
        layers: how many.
        weights: their weights' number.
        before: bytes of these weights in the type of the run.
        after: bytes that are kept of them.
    """

    layers: int
    weights: int
    before: int
    after: int

    def line(self, name: str) -> str:
        """Return what to say of it."""
        rest = f" (convolutions in {OF_CONVOLUTIONS[name]})" if name in OF_CONVOLUTIONS else ""
        return (
            f"{self.layers} layers of the base are kept in {name}{rest}: {amount(self.before)} of weights in"
            f" {amount(self.after)}; the adapter is merged and exported on the weights as they are."
        )


def quantize(models: Sequence[nn.Module], name: str, device: torch.device, dtype: torch.dtype | None) -> Quantized:
    """Put coded layers in place of models' large frozen linear layers and convolutions, beneath their adapters.

    Each layer is moved by itself, so the device never holds the whole model in more bits. Heads stay, and so do layers
    that share a weight with another module, such as a text decoder's last one with its words.

    Args:
        models: on any device; adapters may be on them.
        name: of the code, a key of ``CODES``.
        device: where the codes go.
        dtype: of the run, for the count of bytes; None: the layers' own.

    Raises:
        ConfigError: full tuning would change the weights, or no layer is large enough.
    """
    found, constants = Quantized(0, 0, 0, 0), dict[str, Tensor]()
    for model in models:
        _refuse_shifts(model, name)
        table: dict[nn.Module, Coded] = {}
        for layer in large_layers(model):
            weight = layer.get_parameter("weight")
            size = weight.numel() * (dtype or weight.dtype).itemsize
            table[layer] = new = coded(layer, name, device)
            kept = sum(tensor.nbytes for tensor in new.stored())
            for key in new.code.constants:
                kept -= getattr(new, key).nbytes if key in constants else 0
                setattr(new, key, constants.setdefault(key, getattr(new, key)))
            layers, weights = found.layers + 1, found.weights + weight.numel()
            found = Quantized(layers, weights, found.before + size, found.after + kept)
            _free(layer)
        _replace(model, table)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what making the codes took is the run's again
    if not found.layers:
        raise ConfigError(f"train.memory.base: no layer of this base is large enough for {name}; set it to auto.")
    return found


def large_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that a code pays for: large, frozen, with a weight of their own, in no head."""
    heads = {id(part) for slot in model.modules() if isinstance(slot, HeadSlot) for part in slot.modules()}
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    plain = [module for module in model.modules() if type(module) in _CODED and id(module) not in heads]
    return [layer for layer in plain if users[id(layer.get_parameter("weight"))] == 1 and _fits(layer)]


def _fits(layer: nn.Module) -> bool:
    weight = layer.get_parameter("weight")
    if weight.requires_grad or weight.numel() < LEAST or weight.numel() % BLOCK or min(weight.shape[:2]) < ENDS:
        return False
    return isinstance(layer, nn.Linear) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))


def _numbers(padding: Any) -> tuple[int, ...]:
    return tuple(padding)


def _refuse_shifts(model: nn.Module, name: str) -> None:
    if any(isinstance(module, Shift) for module in model.modules()):
        raise ConfigError(
            f"train.memory.base: full tuning changes the weights themselves, which cannot be kept in {name}; set it to"
            " auto, or take another adapter.method."
        )


def _free(layer: nn.Module) -> None:
    """Let go of a weight that has been coded; what still looks at the layer before it is replaced is given nothing."""
    layer.register_parameter("weight", None)


def _replace(model: nn.Module, table: Mapping[nn.Module, Coded]) -> None:
    """Put new layers wherever a module of the model holds the old ones."""
    for parent in list(model.modules()):
        children = list(parent._modules.items())  # pyright: ignore[reportPrivateUsage] - a child in two places twice
        for name, child in children:
            if child is None or child not in table:
                continue
            if isinstance(parent, Slot):
                parent.exchange(table[child])
            else:
                setattr(parent, name, table[child])

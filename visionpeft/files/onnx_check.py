"""Whether an ONNX model computes what PyTorch computes, where both choose alike among what is nearly equal.

RT-DETR, D-FINE, RF-DETR and two-stage Deformable DETR take the best-ranked places of a picture as their queries. Two
places whose scores differ by less than rounding change places between any two programs, and two queries then stand in
each other's slots: a large difference slot by slot, and none in what is found. So PyTorch takes the places that the
file took, and that each of these choices is right is checked by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Difference:
    """How far the file is from PyTorch.

    Attributes:
        error: the largest difference of an output, and of a score that was chosen to the one of the same rank that
            PyTorch would have chosen; NaN where one is not a number.
        reordered: places that PyTorch would have ranked otherwise.
        ranked: places that were chosen by rank.
    """

    error: float
    reordered: int = 0
    ranked: int = 0

    def worst(self, other: Difference) -> Difference:
        """Return both in one: the larger error (NaN is the largest), and the places of both."""
        error = float(np.maximum(self.error, other.error))
        return Difference(error, self.reordered + other.reordered, self.ranked + other.ranked)


def difference(module: nn.Module, model: Any, pixels: Tensor) -> Difference:
    """Return how far an ONNX model is from the module that it was made of.

    Args:
        module: takes the pixels and returns a tensor or several.
        model: the ``ModelProto``; it is not changed.
        pixels: [N, 3, H, W] float32.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(_telling(model), providers=["CPUExecutionProvider"])
    answers: Any = session.run(None, {"pixels": pixels.numpy()})
    found = [torch.from_numpy(answer) for answer in answers]
    outputs = len(model.graph.output)
    with torch.no_grad(), _SameChoices(found[outputs:]) as same:
        expected = module(pixels)
    tensors: Sequence[Tensor] = (expected,) if isinstance(expected, Tensor) else expected
    errors = [(one - other).abs().max() for one, other in zip(found[:outputs], tensors, strict=True)]
    return Difference(float(torch.stack(errors + same.errors).max()), same.reordered, same.ranked)


def _telling(model: Any) -> bytes:
    """The model with the places that it chooses by rank as further outputs, in the order of its computing."""
    onnx: Any = import_module("onnx")
    chosen = [node.output[1] for node in model.graph.node if node.op_type == "TopK" and node.output[1:]]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chosen if name)
    return copy.SerializeToString()


class _SameChoices(TorchFunctionMode):
    """Let ``topk`` take given places, one choice a call, and keep how far they are from PyTorch's own.

    A call that no choice is left for, or whose shape is another one, chooses by itself.
    """

    def __init__(self, choices: Sequence[Tensor]) -> None:
        super().__init__()
        self._choices = list(choices)
        self.errors: list[Tensor] = []
        self.reordered = 0
        self.ranked = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk) or not self._choices or self._choices[0].shape != own.indices.shape:
            return own
        dim = (kwargs or {}).get("dim", args[2] if args[2:] else -1)
        places = self._choices.pop(0)
        values = args[0].gather(dim, places)
        self.errors.append((values - own.values).abs().max())
        self.reordered += int((places != own.indices).sum())
        self.ranked += places.numel()
        return type(own)((values, places))

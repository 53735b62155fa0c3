"""Many tensors as slices of one: what is done to all of them is one kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

_ALIGNED = 8
"""Slices begin at multiples of so many elements: 16 bytes in half precision, as fast kernels ask."""


class Layout:
    """Where tensors lie in a flat buffer, each in the order in which its own elements lie in memory.

    Args:
        tensors: whose shapes and strides they are.

    Attributes:
        size: elements of a buffer; those between the slices are never anything but 0.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._forms = [(tensor.shape, _strides(tensor)) for tensor in tensors]
        padded = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in tensors]
        self._starts = [0, *accumulate(padded)]
        self.size = self._starts[-1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors that lie in a buffer of at least ``size`` elements."""
        places = zip(self._forms, self._starts[:-1], strict=True)
        return [flat.as_strided(shape, strides, flat.storage_offset() + at) for (shape, strides), at in places]

    def part(self, members: range) -> slice:
        """Return the stretch of a buffer that holds the tensors of these numbers."""
        return slice(self._starts[members.start], self._starts[members.stop])


class FlatWeights:
    """Parameters by group, which from now on lie in one tensor; they stay the same objects.

    Args:
        trainable: parameters by group, of one type and on one device.

    Attributes:
        parameters: all of them, in order.
        layout: where they lie.
        flat: the tensor, [layout.size].
    """

    def __init__(self, trainable: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.parameters = [parameter for group in trainable.values() for parameter in group]
        self.layout = Layout(self.parameters)
        first = self.parameters[0]
        self.flat = torch.zeros(self.layout.size, dtype=first.dtype, device=first.device)
        for parameter, place in zip(self.parameters, self.layout.views(self.flat), strict=True):
            place.copy_(parameter.detach())
            parameter.data = place
        ends = [0, *accumulate(len(group) for group in trainable.values())]
        self._members = {name: range(*pair) for name, pair in zip(trainable, pairwise(ends), strict=True)}

    def groups(self, gradients: Tensor) -> dict[str, list[nn.Parameter]]:
        """Return each group as one flat parameter in the same memory.

        Args:
            gradients: a buffer of the same layout, whose stretches are their gradients.
        """
        return {name: [self._whole(mine, gradients)] for name, mine in self._members.items()}

    def _whole(self, members: range, gradients: Tensor) -> nn.Parameter:
        part = self.layout.part(members)
        whole = nn.Parameter(self.flat[part])
        whole.grad = gradients[part]
        return whole

    def members(self, group: int) -> range:
        """Return the numbers of a group's parameters."""
        return list(self._members.values())[group]

    def taken_apart(self, group: int, value: Tensor) -> list[Tensor]:
        """Return what a value of a flat group, an element for each weight or one for all, is of each parameter."""
        members = self.members(group)
        if value.ndim == 0:
            return [value] * len(members)
        whole = torch.zeros(self.layout.size, dtype=value.dtype, device=value.device)
        whole[self.layout.part(members)] = value
        return self.layout.views(whole)[members.start : members.stop]

    def put_together(self, group: int, values: Sequence[Tensor]) -> Tensor:
        """Return the value of a flat group that ``taken_apart`` gave these of."""
        if values[0].ndim == 0:
            return values[0]
        members = self.members(group)
        whole = torch.zeros(self.layout.size, dtype=values[0].dtype, device=values[0].device)
        for place, value in zip(self.layout.views(whole)[members.start : members.stop], values, strict=True):
            place.copy_(value)
        return whole[self.layout.part(members)].clone()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's strides where its elements lie without gaps, else those of a contiguous one."""
    gapless = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.stride() if gapless else torch.empty(tensor.shape, device="meta").stride()

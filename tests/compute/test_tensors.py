from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from visionpeft.compute.tensors import form_of, refill, tensors_in, with_tensors


@dataclass(frozen=True)
class Batch:
    pixels: torch.Tensor
    targets: tuple[Mapping[str, torch.Tensor], ...]
    size: int
    ids: torch.Tensor | None = None


def batch(first: float = 0.0, *, boxes: int = 2, size: int = 7) -> Batch:
    return Batch(torch.full((2, 3), first), ({"boxes": torch.full((boxes, 4), first + 1)},), size)


def test_a_form_is_all_but_the_elements():
    assert form_of(batch(0.0)) == form_of(batch(5.0))
    others = [batch(boxes=3), batch(size=8), Batch(torch.zeros(2, 3).double(), batch().targets, 7)]
    others.append(Batch(torch.zeros(2, 3), batch().targets, 7, torch.zeros(1)))
    others.append(Batch(torch.zeros(2, 3), ({"labels": torch.zeros(2, 4)},), 7))
    assert len({form_of(batch()), *map(form_of, others)}) == 6


def test_what_cannot_be_compared_has_no_form():
    with pytest.raises(TypeError):
        form_of((torch.zeros(1), {1, 2}))


def test_a_copy_is_refilled_in_place():
    first = batch(1.0)
    standing = with_tensors(first, torch.Tensor.clone)
    places = [tensor.data_ptr() for tensor in tensors_in(standing)]
    refill(standing, batch(3.0))
    assert [tensor.data_ptr() for tensor in tensors_in(standing)] == places
    assert [float(tensor.sum()) for tensor in tensors_in(standing)] == [18.0, 32.0]
    assert [float(tensor.sum()) for tensor in tensors_in(first)] == [6.0, 16.0], "the batch itself stays as it is"
    assert isinstance(standing, Batch)
    assert isinstance(standing.targets, tuple)
    assert standing.size == 7


def test_other_forms_do_not_fit():
    with pytest.raises(ValueError, match="zip"):
        refill((torch.zeros(1),), (torch.zeros(1), torch.zeros(1)))

"""What must hold before a LoRA file is written: finite values, factors that fit each other and the base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from visionpeft.errors import AdapterError, FileFormatError

Parts = Mapping[str, Tensor]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The types that every program reads."""


def flat_shape(parts: Parts) -> tuple[int, int]:
    """Return the shape [out, in·kh·kw] of the ΔW that a low-rank module's parameters make.

    Raises:
        AdapterError: the factors do not fit each other, or the method is not low-rank.
    """
    if thin := [name for name, part in parts.items() if part.ndim < 2 and name != "lora_magnitude_vector"]:
        raise AdapterError(f"{thin[0]} has {parts[thin[0]].ndim} dimensions, not two or more")
    if "lora_A.weight" in parts:
        return _product_shape(parts["lora_B.weight"].flatten(1), parts["lora_A.weight"].flatten(1))
    if "hada_w1_a" in parts:
        halves = {_half_shape(parts, f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}") for n in "12"}
        if len(halves) > 1:
            raise AdapterError(f"the two halves of a LoHa module have the shapes {sorted(halves)}; they must be equal")
        return halves.pop()
    if any(name.startswith("lokr_") for name in parts):
        first, second = _kron_shape(parts, "1"), _kron_shape(parts, "2")
        return first[0] * second[0], first[1] * second[1]
    raise AdapterError(f"parameters {sorted(parts)} are no low-rank module")


def _kron_shape(parts: Parts, half: str) -> tuple[int, int]:
    whole = parts.get(f"lokr_w{half}")
    if whole is not None:
        return whole.shape[0], prod(whole.shape[1:])
    return _half_shape(parts, f"lokr_w{half}_a", f"lokr_w{half}_b", f"lokr_t{half}")


def _half_shape(parts: Parts, first: str, second: str, core: str) -> tuple[int, int]:
    if core not in parts:
        return _product_shape(parts[first], parts[second].flatten(1))
    return parts[first].shape[1], parts[second].shape[1] * prod(parts[core].shape[2:])


def _product_shape(up: Tensor, down: Tensor) -> tuple[int, int]:
    if up.shape[1] != down.shape[0]:
        raise AdapterError(f"factors of shapes {tuple(up.shape)} and {tuple(down.shape)} do not fit each other")
    return up.shape[0], down.shape[1]


def check_fits(place: str, parts: Parts, weights: Mapping[str, Tensor] | None) -> None:
    """Check a low-rank module against its base weight: a transposed factor loads silently wrong elsewhere.

    Raises:
        AdapterError: the factors do not fit each other or the base's weight, or the base has no such module.
    """
    try:
        shape = flat_shape(parts)
    except AdapterError as error:
        raise AdapterError(f"{place}: {error}") from error
    except (IndexError, RuntimeError, KeyError) as error:  # of a hostile file: too few dimensions, a missing half
        told = ", ".join(f"{name} {list(part.shape)}" for name, part in sorted(parts.items()))
        raise AdapterError(f"{place}: {told} make no module") from error
    if weights is None:
        return
    if place not in weights:
        raise AdapterError(f"the base has no module '{place}': the adapter belongs to another base")
    weight = weights[place]
    wanted = (weight.shape[0], prod(weight.shape[1:]))
    kernel = parts["lora_A.weight"].shape[1:] if "lora_A.weight" in parts else weight.shape[1:]
    if shape != wanted or kernel != weight.shape[1:]:
        raise AdapterError(
            f"{place}: the factors make a ΔW of {list(shape)}, the base's weight is {list(weight.shape)}; "
            "the adapter belongs to another base, or a factor is transposed"
        )


def narrowed(place: str, tensor: Tensor, dtype: str) -> Tensor:
    """Return a tensor in the type of the file, refusing what it cannot hold.

    Raises:
        FileFormatError: an unknown dtype, a value that is not a number, or one too large for the type.
    """
    if dtype not in DTYPES:
        raise FileFormatError(f"dtype '{dtype}' is none of {', '.join(DTYPES)}")
    if not bool(torch.isfinite(tensor).all()):
        raise FileFormatError(
            f"{place} holds values that are not numbers: the training went wrong; use an older checkpoint"
        )
    narrow = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
    if not bool(torch.isfinite(narrow).all()):
        raise FileFormatError(f"{place} holds values too large for {dtype}: export with dtype='bfloat16' or 'float32'")
    return narrow

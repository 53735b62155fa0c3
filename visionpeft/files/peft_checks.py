"""What must hold of an adapter for peft to load it, and of peft's tensors to be an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn

from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.methods import new_branch
from visionpeft.adapters.spec import AdapterSpec, FlatSpec, OftSpec, RankSpec
from visionpeft.errors import AdapterError, FileFormatError
from visionpeft.files.checks import check_fits
from visionpeft.files.peft_config import METHODS

_TOKEN = "token"  # noqa: S105


def check_method(component: str, spec: AdapterSpec) -> None:
    """Raise AdapterError for a method that peft cannot load."""
    if spec.method not in METHODS:
        raise AdapterError(
            f"a peft folder holds {', '.join(METHODS)}, not '{spec.method}' ({component}): convert the adapter first"
            " with adapter.to_lora(rank=…, base=…), merge it, or keep the native file"
        )


def check_heads(adapter: Adapter) -> None:
    """Raise AdapterError for heads that are no whole modules."""
    known = {f"{place}.{name}" for place, names in adapter.metadata.head_modules.items() for name in names}
    for name in adapter.heads:
        if name not in known:
            kind = "the trained word" if name.split(".", 2)[1:2] == [_TOKEN] else "the head"
            raise AdapterError(f"{kind} '{name}' has no place in a peft folder: keep the native file")


def check_module(
    spec: AdapterSpec, place: str, path: str, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None
) -> None:
    """Check one module before it is written.

    Args:
        spec: the component's spec.
        place: "component.path".
        path: the canonical path alone.
        parts: its parameters by name.
        weights: the base's, or None.

    Raises:
        AdapterError: peft could not load it, or it does not fit the base.
    """
    check_shapes(spec, place, parts, weights)
    _check_dimensions(spec, path, parts)
    _check_decomposition(spec, path, parts)


def check_shapes(
    spec: AdapterSpec, place: str, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None
) -> None:
    """Raise AdapterError where a module does not fit the base; of OFT and (IA)³ one side of the weight is told."""
    if isinstance(spec, RankSpec):
        check_fits(place, parts, weights)
    elif weights is not None:
        if place not in weights:
            raise AdapterError(f"the base has no module '{place}': the adapter belongs to another base")
        try:
            blank = {name: part.to("meta") for name, part in parts.items()}
            algebra.delta(spec, blank, weights[place].to("meta"))
        except RuntimeError as error:
            raise AdapterError(
                f"{place}: its {spec.method} does not fit a weight of {list(weights[place].shape)}: another base's"
            ) from error


def check_vectors(path: str, parts: Mapping[str, Tensor]) -> None:
    """Raise FileFormatError where the one tensor of OFT or (IA)³ has no shape that peft writes."""
    ((name, tensor),) = parts.items()
    width = tensor.shape[1] if tensor.ndim == 2 else 0
    side = (1 + isqrt(1 + 8 * width)) // 2
    blocks = width > 0 and side * (side - 1) // 2 == width
    vector = tensor.ndim in (2, 4) and tensor.numel() == max(tensor.shape) > 0
    if not (blocks if name == "oft_R.weight" else vector) or not tensor.is_floating_point():
        raise FileFormatError(f"'{path}': a {name} of {list(tensor.shape)} is none that peft writes.")


def _check_dimensions(spec: AdapterSpec, path: str, parts: Mapping[str, Tensor]) -> None:
    """Convolutions over time cannot run in peft: transformers' Whisper asks for a stride that peft's layer hides."""
    one = isinstance(spec, FlatSpec) and len(spec.kernels.get(path, ())) == 1
    if one or any(tensor.ndim == 3 for tensor in parts.values()):
        raise AdapterError(
            f"'{path}' is a convolution over time, which transformers' Whisper cannot run inside peft: leave 'conv' out"
            " of the targets, or merge the adapter (--format transformers or ctranslate2)"
        )


def _check_decomposition(spec: AdapterSpec, path: str, parts: Mapping[str, Tensor]) -> None:
    """LoHa and LoKr from other programs may be factorised as peft would not do it, and peft could not load them."""
    if isinstance(spec, OftSpec):
        _check_blocks(spec, path, parts["oft_R.weight"])
    if not isinstance(spec, FlatSpec):
        return
    with torch.device("meta"):
        blank = {name: torch.empty(tensor.shape) for name, tensor in parts.items()}
        shape = algebra.delta(spec, blank, path=path).shape
    layer = nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), device="meta") if len(shape) == 4 else None
    fresh = new_branch(spec, path, layer or nn.Linear(shape[1], shape[0], device="meta"))
    wanted = {name: tuple(tensor.shape) for name, tensor in fresh.parts.items()}
    found = {name: tuple(tensor.shape) for name, tensor in parts.items()}
    if wanted != found:
        raise AdapterError(
            f"'{path}': this {spec.method} is factorised in another way than peft does it ({found}): convert it with"
            " adapter.to_lora()"
        )


def _check_blocks(spec: OftSpec, path: str, vectors: Tensor) -> None:
    """Peft makes blocks of the size nearest to the one that is asked for; others it could not load."""
    side = round((1 + (1 + 8 * vectors.shape[1]) ** 0.5) / 2)
    fresh = new_branch(spec, path, nn.Linear(len(vectors) * side, 1, device="meta")).parts["oft_R.weight"]
    if fresh.shape != vectors.shape:
        raise AdapterError(
            f"'{path}': peft would make blocks of another size than {side} there: convert it with adapter.to_lora(), or"
            " keep the native file"
        )


def check_whole(method: str, path: str, parts: Mapping[str, Tensor]) -> None:
    """Raise FileFormatError where a tensor of a module is missing."""
    needed = {
        "dora": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "lokr": (),
        "oft": ("oft_R.weight",),
        "ia3": ("ia3_l",),
    }.get(method, ("lora_A.weight", "lora_B.weight"))
    halves = [("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")], [("lokr_w2",), ("lokr_w2_a", "lokr_w2_b")]
    missing = [name for name in needed if name not in parts]
    if method == "lokr":
        missing = [half[0][0] for half in halves if not any(all(name in parts for name in way) for way in half)]
    if missing:
        raise FileFormatError(f"'{path}' lacks {missing[0]}: the file is not whole.")

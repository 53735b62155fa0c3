"""The layout of kohya's trainers, which ComfyUI, AUTOMATIC1111, Forge, InvokeAI and diffusers read.

A module is one flat name with a suffix a tensor: ``lora_unet_mid_block_attentions_0_proj_in.lora_down.weight``, and a
scalar ``.alpha`` for every module: the programs multiply with alpha / rank, and with 1 where it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visionpeft.adapters import algebra
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.spec import scale_of
from visionpeft.errors import AdapterError
from visionpeft.files.checks import Parts, check_fits, narrowed
from visionpeft.files.lycoris import Changes
from visionpeft.files.names import Blocks, kohya_name
from visionpeft.files.reading import divisor

SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    **{name: name for name in algebra.PARAMETERS if name.startswith(("hada_", "lokr_"))},
}
"""This package's parameter names -> kohya's and LyCORIS' suffixes."""

METHODS = ("lora", "rslora", "dora", "loha", "lokr")
"""What the layout can express."""


def write(
    adapter: Adapter,
    family: str,
    *,
    dtype: str,
    weights: Mapping[str, Tensor] | None,
    whole: Changes | None = None,
    programs: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Return the tensors of a kohya file; the scale of every module stands in its own float32 ``alpha``.

    rsLoRA becomes plain LoRA with alpha' = alpha·√rank; DoRA's magnitudes (a value an output) become ``dora_scale``.

    Args:
        adapter: what is written.
        family: "sd1", "sd2" or "sdxl".
        dtype: of the factors.
        weights: the base's, to check the shapes; or None.
        whole: the writer of LyCORIS' whole differences, where they are allowed.
        programs: that it is written for, where their readings of DoRA differ; see `over_base_rows`.

    Raises:
        AdapterError: a method that the layout cannot express, or factors that do not fit.
        FileFormatError: a module that has no name in the layout.
    """
    blocks, over_base = Blocks.of(weights or ()), over_base_rows(programs, weights)
    tensors: dict[str, Tensor] = {}
    for place, parts in algebra.modules(adapter).items():
        component, _, path = place.partition(".")
        spec = adapter.specs[component]
        changed = None if whole is None else whole.module(place, spec, parts)
        if changed is not None:
            name = kohya_name(place, family, blocks)
            tensors |= {f"{name}.{suffix}": _stored(place, suffix, tensor, dtype) for suffix, tensor in changed.items()}
            continue
        if spec.method not in METHODS:
            raise AdapterError(
                f"the kohya layout cannot express the method '{spec.method}' ({component}): "
                "convert the adapter first with adapter.to_lora(rank=…, base=…)"
            )
        check_fits(place, parts, weights)
        name, scale = kohya_name(place, family, blocks), scale_of(spec, path)
        divided = over_base and spec.method == "dora"
        written = _over_base_rows(parts, scale, weights[place]) if weights is not None and divided else parts
        for suffix, tensor in _module(written, scale).items():
            tensors[f"{name}.{suffix}"] = _stored(place, suffix, tensor, dtype)
    return tensors


def over_base_rows(programs: tuple[str, ...], weights: Mapping[str, Tensor] | None) -> bool:
    """Whether DoRA's magnitudes are written over the lengths of W's rows instead of those of W + ΔV.

    ComfyUI and Forge divide magnitudes by output by the former; the paper, peft and LyCORIS by the latter.
    """
    if not programs or not set(programs) <= {"ComfyUI", "Forge"}:
        return False
    first = next(iter((weights or {}).values()), None)
    return first is not None and not first.is_meta


def _over_base_rows(parts: Parts, scale: float, weight: Tensor) -> dict[str, Tensor]:
    """DoRA's magnitudes times ‖W‖ / ‖W + ΔV‖ by row: divided by ‖W‖ they give what DoRA is."""
    added = scale * (parts["lora_B.weight"].float().flatten(1) @ parts["lora_A.weight"].float().flatten(1))
    rows = weight.float().flatten(1)
    ratio = rows.norm(dim=1) / (rows + added).norm(dim=1)
    magnitudes = parts["lora_magnitude_vector"].float()
    return {**parts, "lora_magnitude_vector": magnitudes * ratio.reshape(magnitudes.shape)}


def _stored(place: str, suffix: str, tensor: Tensor, dtype: str) -> Tensor:
    """A tensor in the file's type; what would change a whole module or row by rounding stays exact."""
    if suffix == "on_input":
        return tensor
    return narrowed(place, tensor, "float32" if suffix in ("alpha", "dora_scale") else dtype)


def _module(parts: Parts, scale: float) -> dict[str, Tensor]:
    named = {SUFFIXES[name]: tensor for name, tensor in parts.items()}
    if "dora_scale" in named:  # [out] -> [out, 1, …]: a value an output, in the shape that multiplies the weight
        ones = (1,) * (named["lora_down.weight"].ndim - 1)
        named["dora_scale"] = named["dora_scale"].reshape(-1, *ones)
    rank = divisor(named)
    if rank is None:  # both factors of LoKr are whole: the programs apply no scale then
        named["lokr_w1"] = named["lokr_w1"] * scale
    return {**named, "alpha": torch.tensor(scale * rank if rank else 1.0)}

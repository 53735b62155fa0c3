"""Module names of Flux and Stable Diffusion 3: from the original code's, where projections are fused, to diffusers'.

``double_blocks.3.img_attn.qkv`` is one matrix there and three here: its rows belong to ``to_q``, ``to_k`` and ``to_v``.
A LoRA of it is three of the same down factor, with the up factor's rows shared out, and changes exactly the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Parted:
    """Where a module of the original code stands in diffusers' model.

    Attributes:
        paths: one path, or several for a fused module, in the order of its rows.
        shares: how its rows are shared out: (1, 1, 1, 4) gives the last one four sevenths.
    """

    paths: tuple[str, ...]
    shares: tuple[int, ...] = (1,)


_THREE, _FOUR = (1, 1, 1), (1, 1, 1, 4)
_JOINED = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

_FLUX: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    (r"double_blocks\.(\d+)\.img_attn\.qkv", _JOINED, _THREE),
    (r"double_blocks\.(\d+)\.txt_attn\.qkv", _ADDED, _THREE),
    (r"double_blocks\.(\d+)\.img_attn\.proj", ("attn.to_out.0",), (1,)),
    (r"double_blocks\.(\d+)\.txt_attn\.proj", ("attn.to_add_out",), (1,)),
    (r"double_blocks\.(\d+)\.processor\.qkv_lora1", _JOINED, _THREE),
    (r"double_blocks\.(\d+)\.processor\.qkv_lora2", _ADDED, _THREE),
    (r"double_blocks\.(\d+)\.processor\.proj_lora1", ("attn.to_out.0",), (1,)),
    (r"double_blocks\.(\d+)\.processor\.proj_lora2", ("attn.to_add_out",), (1,)),
    (r"double_blocks\.(\d+)\.img_mlp\.0", ("ff.net.0.proj",), (1,)),
    (r"double_blocks\.(\d+)\.img_mlp\.2", ("ff.net.2",), (1,)),
    (r"double_blocks\.(\d+)\.txt_mlp\.0", ("ff_context.net.0.proj",), (1,)),
    (r"double_blocks\.(\d+)\.txt_mlp\.2", ("ff_context.net.2",), (1,)),
    (r"double_blocks\.(\d+)\.img_mod\.lin", ("norm1.linear",), (1,)),
    (r"double_blocks\.(\d+)\.txt_mod\.lin", ("norm1_context.linear",), (1,)),
    (r"single_blocks\.(\d+)\.linear1", (*_JOINED, "proj_mlp"), _FOUR),
    (r"single_blocks\.(\d+)\.linear2", ("proj_out",), (1,)),
    (r"single_blocks\.(\d+)\.modulation\.lin", ("norm.linear",), (1,)),
)
_SD3: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    (r"joint_blocks\.(\d+)\.x_block\.attn\.qkv", _JOINED, _THREE),
    (r"joint_blocks\.(\d+)\.context_block\.attn\.qkv", _ADDED, _THREE),
    (r"joint_blocks\.(\d+)\.x_block\.attn\.proj", ("attn.to_out.0",), (1,)),
    (r"joint_blocks\.(\d+)\.context_block\.attn\.proj", ("attn.to_add_out",), (1,)),
    (r"joint_blocks\.(\d+)\.x_block\.mlp\.fc1", ("ff.net.0.proj",), (1,)),
    (r"joint_blocks\.(\d+)\.x_block\.mlp\.fc2", ("ff.net.2",), (1,)),
    (r"joint_blocks\.(\d+)\.context_block\.mlp\.fc1", ("ff_context.net.0.proj",), (1,)),
    (r"joint_blocks\.(\d+)\.context_block\.mlp\.fc2", ("ff_context.net.2",), (1,)),
    (r"joint_blocks\.(\d+)\.x_block\.adaLN_modulation\.1", ("norm1.linear",), (1,)),
    (r"joint_blocks\.(\d+)\.context_block\.adaLN_modulation\.1", ("norm1_context.linear",), (1,)),
)
_ENDS = {
    "flux": {
        "img_in": "x_embedder", "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
    },
    "sd3": {
        "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
    },
}  # fmt: skip


def parted(name: str, family: str) -> Parted | None:
    """Where a module of the original code stands in diffusers' model; None for no such name.

    Args:
        name: dotted ("double_blocks.0.img_attn.qkv") or flat ("double_blocks_0_img_attn_qkv").
        family: "flux" or "sd3".
    """
    flat = name.replace(".", "_")
    for pattern, inner, shares in _FLUX if family == "flux" else _SD3:
        found = re.fullmatch(pattern.replace(r"\.", "_"), flat)
        if found:
            block = "single_transformer_blocks" if flat.startswith("single_") else "transformer_blocks"
            return Parted(tuple(f"{block}.{found[1]}.{path}" for path in inner), shares)
    ends = {old.replace(".", "_"): new for old, new in _ENDS[family].items()}
    return Parted((ends[flat],)) if flat in ends else None


_DIFFUSERS = re.compile(
    r"^(single_transformer_blocks|transformer_blocks)\.\d+\.[a-z0-9_.]+$|^(x_embedder|context_embedder|proj_out)$"
    r"|^(norm_out\.linear|pos_embed\.proj|time_text_embed\.[a-z]+_embedder\.linear_[12])$"
)


def is_diffusers(path: str) -> bool:
    """Whether a path is one of diffusers' transformers of Flux or SD 3."""
    return _DIFFUSERS.match(path) is not None


def family_of(names: list[str]) -> str:
    """Tell "flux" or "sd3" by what only one of them has; "" where nothing tells."""
    text = "\n".join(names).replace(".", "_")
    if re.search(r"double_blocks_|single_blocks_|single_transformer_blocks_", text):
        return "flux"
    return "sd3" if "joint_blocks_" in text or re.search(r"transformer_transformer_blocks_\d+_", text) else ""

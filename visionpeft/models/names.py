"""What the layers of vision models are called: one table of kinds for all families, and the names of earlier versions.

The names are those of the newest transformers. The tables of renames lead there from the names that transformers had
before 5.9 (ViT, DeiT, BEiT, Swin), before 5.18 (DINOv2) and before 5.5 (the DETR family). A rename leaves the newest
names as they are, so the tables apply to any model and to any saved adapter, whatever version made it.
"""

from __future__ import annotations

from collections.abc import Iterable

from visionpeft.models.family import Rename

_SELF = r"\.\d+\.(attention|self_attn)\."
_CROSS = r"\.\d+\.(encoder_attn|cross_attn)\."
_ANY = r"\.\d+\.(attention|self_attn|encoder_attn|cross_attn)\."
_Q, _K, _V, _OUT = r"q_(\w+_)?proj", r"k_(\w+_)?proj", r"(v|value)_proj", r"(o|out|output)_proj"
_QKVO = f"({_Q}|{_K}|{_V}|{_OUT})$"

KINDS = {
    "attention": _ANY + _QKVO,
    "attention.q": f"{_ANY}{_Q}$",
    "attention.k": f"{_ANY}{_K}$",
    "attention.v": f"{_ANY}{_V}$",
    "attention.out": f"{_ANY}{_OUT}$",
    "self-attention": _SELF + _QKVO,
    "cross-attention": _CROSS + _QKVO,
    "deformable-attention": _ANY + r"(sampling_offsets|attention_weights|value_proj|output_proj)$",
    "mlp": r"\.\d+\.(mlp\.(fc[12]|(gate|up|down)_proj|weights_(in|out)|layers\.\d+)|pwconv[12])$",
    "conv": r"(^|\.)(conv\w*|downsample\.0|projection|patch_embeddings?|\w*input_proj(ection)?(\.\d+\.\d+)?"
    r"|downsampling_layer\.\d+)$",
}
"""Kind -> a regular expression of paths. Deformable attention has values and an output as any other, and no q and k."""


def kinds(names: Iterable[str]) -> dict[str, str]:
    """The rows of `KINDS` that a family has."""
    return {name: KINDS[name] for name in names}


def in_part(part: str, kind: str) -> str:
    """A regular expression of the paths of a kind inside a part, which is an expression of how paths begin."""
    return rf"^(?={part}).*({kind})"


END = r"(?=\.|$)"
SPLIT_ATTENTION: tuple[Rename, ...] = (
    (r"attention\.(?:attention|self)\.(query|key|value)" + END, r"attention.\1"),
    (r"attention\.output\.dense" + END, "attention.o_proj"),
    (r"\.intermediate\.dense" + END, ".mlp.fc1"),
    (r"^output\.dense$|(?<=\.)output\.dense" + END, "mlp.fc2"),
    (r"(^|\.)query" + END, r"\1q_proj"),
    (r"(^|\.)key" + END, r"\1k_proj"),
    (r"(^|\.)value" + END, r"\1v_proj"),
)
"""From BERT's names, which ViT, BEiT, Swin and DINOv2 once had."""

FLAT_LAYERS: tuple[Rename, ...] = ((r"(^|\.)encoder\.layer\.(\d+|\*)" + END, r"\1layers.\2"),)
"""ViT, DeiT and BEiT lost the module between the model and its layers."""

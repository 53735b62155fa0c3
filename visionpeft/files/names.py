"""How modules are called in LoRA files: canonical paths, kohya's flat names, and SDXL's original ("sgm") names.

Canonical names are diffusers' dotted paths ("unet.mid_block.attentions.0.proj_in"). kohya's flat names put a prefix for
the component in front and underscores for the dots; for SDXL's UNet they flatten the names of the original code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from visionpeft.errors import FileFormatError

PREFIXES = {
    "sd1": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sd2": {"unet": "lora_unet_", "text_encoder": "lora_te_"},
    "sdxl": {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}
"""Family -> component -> what kohya's names of its modules begin with."""

WORDS = (
    "down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "ff", "net",
    "proj", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "conv_norm_out",
    "norm", "norm1", "norm2", "norm3", "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2",
    "layer_norm1", "layer_norm2", "final_layer_norm", "embeddings", "token_embedding", "position_embedding",
    "text_projection", "transformer_blocks", "single_transformer_blocks", "add_q_proj", "add_k_proj", "add_v_proj",
    "to_add_out", "ff_context", "proj_mlp", "attn", "norm1_context", "linear", "norm_out", "x_embedder",
    "context_embedder", "block", "layer", "SelfAttention", "DenseReluDense", "wi_0", "wi_1", "wo", "q", "k", "v", "o",
)  # fmt: skip
"""Every part of a canonical path that is no number: enough to put the dots back into a flat name."""

_WORD = re.compile("|".join([*sorted(map(re.escape, WORDS), key=len, reverse=True), r"\d+"]))

RESNET_PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
"""Inside a residual block: diffusers' names -> the original code's."""

STRUCTURE = "visionpeft_unet"
"""Header entry with the UNet's structure, where it is not the published models' and the names depend on it."""
DORA = "visionpeft_dora"
"""Header entry of files whose DoRA magnitudes stand over the lengths of the base's rows: "base"."""

FIXED = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
"""Outside the blocks: diffusers' names -> the original code's."""

_RESNET_NAMES = {new.replace(".", "_"): old for old, new in RESNET_PARTS.items()}
_FIXED_NAMES = {new.replace(".", "_"): old for old, new in FIXED.items()}


@dataclass(frozen=True)
class Blocks:
    """What the original names depend on: they count through all blocks of the UNet.

    Attributes:
        layers: residual blocks in a down block; up blocks have one more. 2 in every published model.
        plain: up blocks without attention: their upsampler stands one place earlier.
    """

    layers: int = 2
    plain: frozenset[int] = frozenset()

    @staticmethod
    def of(places: Iterable[str]) -> Blocks:
        """Read them off the "unet.…" module paths of a whole model; parts of one tell too little."""
        text = "\n".join(places)
        if "unet.conv_in" not in text:
            return Blocks()
        layers = [int(n) for n in re.findall(r"unet\.down_blocks\.\d+\.resnets\.(\d+)\.", text)]
        ups = {int(n) for n in re.findall(r"unet\.up_blocks\.(\d+)\.", text)}
        attending = {int(n) for n in re.findall(r"unet\.up_blocks\.(\d+)\.attentions\.", text)}
        return Blocks(1 + max(layers, default=1), frozenset(ups - attending))

    @staticmethod
    def read(text: str) -> Blocks:
        """Parse what ``str`` gives: "1:1,2" is one layer a block, up blocks 1 and 2 plain; "" the published UNets."""
        found = re.fullmatch(r"([1-9]):((?:\d(?:,\d)*)?)", text)
        if found is None:
            return Blocks()
        return Blocks(int(found[1]), frozenset(int(n) for n in found[2].split(",") if n))

    def __str__(self) -> str:
        return f"{self.layers}:{','.join(map(str, sorted(self.plain)))}"


def kohya_name(place: str, family: str, blocks: Blocks) -> str:
    """Return kohya's flat name of a module: "unet.conv_in" -> "lora_unet_conv_in" (SDXL: "lora_unet_input_blocks_0_0").

    Args:
        place: "component.canonical.module.path".
        family: "sd1", "sd2" or "sdxl".
        blocks: the UNet's structure, for the original names.

    Raises:
        FileFormatError: kohya's layout has no place for such a module.
    """
    component, _, path = place.partition(".")
    prefix = PREFIXES.get(family, {}).get(component)
    if prefix is None:
        raise FileFormatError(
            f"the kohya layout has no component '{component}' of family '{family or 'unknown'}': "
            f"it holds Stable Diffusion ({', '.join(PREFIXES)}) only; use format='native'"
        )
    if family == "sdxl" and component == "unet":
        path = original_name(path, blocks)
    return prefix + path.replace(".", "_")


def original_name(path: str, blocks: Blocks) -> str:
    """Return the original code's name of a UNet module: "mid_block.resnets.1.conv1" -> "middle_block.2.in_layers.2".

    Raises:
        FileFormatError: the path is none of a Stable Diffusion UNet.
    """
    if path in FIXED:
        return FIXED[path]
    side, rest = path.split(".", 1) if "." in path else (path, "")
    numbers = re.match(r"(?:(\d{1,4})\.)?(attentions|resnets|downsamplers|upsamplers)\.(\d{1,4})\.(.+)$", rest)
    if side not in ("down_blocks", "mid_block", "up_blocks") or numbers is None:
        raise FileFormatError(f"'unet.{path}' has no name in the original layout of Stable Diffusion's UNet")
    block, kind, place, inner = int(numbers[1] or 0), numbers[2], int(numbers[3]), numbers[4]
    inner = RESNET_PARTS.get(inner, inner) if kind == "resnets" else inner
    return f"{_original_block(side, block, kind, place, blocks)}.{inner}".replace(".op.conv", ".op")


def _original_block(side: str, block: int, kind: str, place: int, blocks: Blocks) -> str:
    stride = blocks.layers + 1
    if kind == "downsamplers":
        return f"input_blocks.{stride * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{stride * block + blocks.layers}.{1 if block in blocks.plain else 2}"
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * place}"
    inside = 1 if kind == "attentions" else 0
    if side == "down_blocks":
        return f"input_blocks.{stride * block + place + 1}.{inside}"
    return f"output_blocks.{stride * block + place}.{inside}"


def is_original(name: str) -> bool:
    """Whether a flat name follows the original code's naming of the UNet."""
    flat = name.removeprefix("lora_unet_")
    return flat.startswith(("input_blocks_", "middle_block_", "output_blocks_", "label_emb_", "time_embed_", "out_"))


def canonical_path(flat: str, blocks: Blocks) -> str | None:
    """Return the canonical path of a UNet's flat name in either naming, or None where it is no such name."""
    if flat in _FIXED_NAMES:
        return _FIXED_NAMES[flat]
    found = re.match(r"(input_blocks|middle_block|output_blocks)_(\d{1,4})_(?:(\d{1,4})_)?(.+)$", flat)
    if found is None:
        return dotted(flat)
    if found[1] == "middle_block":  # only one number: what follows may begin with another
        whole = flat.removeprefix(f"middle_block_{found[2]}_")
        return _with_inner(f"mid_block.{_middle(int(found[2]))}", whole)
    return _side_path(found[1], int(found[2]), int(found[3] or 0), found[4], blocks)


def _middle(place: int) -> str:
    return "attentions.0" if place == 1 else f"resnets.{place // 2}"


def _side_path(side: str, index: int, inside: int, inner: str, blocks: Blocks) -> str | None:
    stride = blocks.layers + 1
    block, place = divmod(index - 1 if side == "input_blocks" else index, stride)
    if side == "input_blocks" and place == blocks.layers:
        return f"down_blocks.{block}.downsamplers.0.conv" if inner == "op" else None
    if side == "output_blocks" and inner == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    group = "down_blocks" if side == "input_blocks" else "up_blocks"
    kind = "attentions" if inside == 1 else "resnets"
    return _with_inner(f"{group}.{block}.{kind}.{place}", inner)


def _with_inner(front: str, inner: str) -> str | None:
    path = _RESNET_NAMES.get(inner) or dotted(inner)
    return path and f"{front}.{path}"


def kernel(path: str, family: str) -> tuple[int, int] | None:
    """Return the kernel (kh, kw) of a convolution of Stable Diffusion's UNet by its path; None for linear layers."""
    if re.search(r"(^|\.)conv(_in|_out|1|2)?$", path):
        return 3, 3
    one = path.endswith("conv_shortcut") or (family == "sd1" and path.endswith((".proj_in", ".proj_out")))
    return (1, 1) if one else None


def dotted(flat: str) -> str | None:
    """Put the dots back: "mid_block_resnets_0_conv1" -> "mid_block.resnets.0.conv1"; None for unknown words."""
    parts: list[str] = []
    position = 0
    while position < len(flat):
        word = _WORD.match(flat, position)
        if word is None or flat[word.end() : word.end() + 1] not in ("", "_"):
            return None
        parts.append(word.group())
        position = word.end() + 1
    return ".".join(parts) or None

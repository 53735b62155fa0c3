"""What one module's tensors are: the endings that programs give them, and the method that they make together.

Every ending is one row, whatever the program: ``.lora_A.weight``, ``.lora.down.weight`` and ``.lora_down.weight`` are
the same factor. Inside this package the tensors go by LyCORIS' suffixes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

PLAIN = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "dora_scale", "alpha",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "oft_blocks", "rescale", "diff", "diff_b", "w_norm", "b_norm", "weight", "on_input",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight",
)  # fmt: skip
"""The suffixes of kohya's trainers and of LyCORIS, behind the first dot of a flat name."""

ENDINGS = {
    ".lora_A.weight": "lora_down.weight", ".lora_B.weight": "lora_up.weight",
    ".lora_A.default.weight": "lora_down.weight", ".lora_B.default.weight": "lora_up.weight",
    ".lora.down.weight": "lora_down.weight", ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight", "_lora.up.weight": "lora_up.weight", "_lora.alpha": "alpha",
    "_lora1.down.weight": "lora_down.weight", "_lora1.up.weight": "lora_up.weight",
    "_lora2.down.weight": "lora_down.weight", "_lora2.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight", ".lora_linear_layer.up.weight": "lora_up.weight",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector", ".lora_magnitude_vector": "lora_magnitude_vector",
    ".oft_R.weight": "oft_R.weight", ".ia3_l": "ia3_l",
    **{f".{suffix}": suffix for suffix in PLAIN if suffix != "weight"},
}  # fmt: skip
"""The endings of dotted names -> the suffix."""

_ENDING = re.compile("(" + "|".join(map(re.escape, sorted(ENDINGS, key=len, reverse=True))) + ")$")


@dataclass(frozen=True)
class Kind:
    """One way in which tensors make a change of a module.

    Attributes:
        name: "lora", "loha", "oft", …
        mark: suffixes of which any one tells the kind.
        needed: what must be there: one of each tuple.
        optional: what may be there beside.
        base: it changes the base's weights as a function of them: ΔW needs the base.
    """

    name: str
    mark: tuple[str, ...]
    needed: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    base: bool = False

    def missing(self, suffixes: Collection[str]) -> str:
        """The first thing that is not there, "lora_up.weight" or "lokr_w1 or lokr_w1_a"; "" where all is."""
        return next((" or ".join(row) for row in self.needed if not any(name in suffixes for name in row)), "")

    def stray(self, suffixes: Collection[str]) -> list[str]:
        """The suffixes that do not belong to it."""
        known = {*self.optional, *(name for row in self.needed for name in row)}
        return sorted(set(suffixes) - known)


_LORA = (("lora_down.weight",), ("lora_up.weight",))
_HADA = tuple((f"hada_w{n}_{side}",) for n in "12" for side in "ab")
_KRON = tuple((f"lokr_w{n}", f"lokr_w{n}_{side}") for n in "12" for side in "ab")
_DORA = ("dora_scale", "lora_magnitude_vector")

KINDS = (
    Kind("loha", ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _HADA, ("hada_t1", "hada_t2", "alpha", *_DORA)),
    Kind("lokr", tuple(name for row in _KRON for name in row), _KRON, ("lokr_t2", "alpha", *_DORA)),
    Kind("glora", ("a1.weight", "b1.weight"), tuple((f"{n}.weight",) for n in ("a1", "a2", "b1", "b2")),
         ("alpha",), base=True),
    Kind("oft", ("oft_blocks",), (("oft_blocks",),), ("rescale", "alpha"), base=True),
    Kind("peft-oft", ("oft_R.weight",), (("oft_R.weight",),), (), base=True),
    Kind("norm", ("w_norm", "b_norm"), (("w_norm",), ("b_norm",)), ("alpha",)),
    Kind("ia3", ("on_input",), (("weight",), ("on_input",)), ("alpha",), base=True),
    Kind("peft-ia3", ("ia3_l",), (("ia3_l",),), (), base=True),
    Kind("lora", ("lora_down.weight", "lora_up.weight", "lora_mid.weight"), _LORA,
         ("lora_mid.weight", "alpha", *_DORA)),
    Kind("full", ("diff", "diff_b"), (("diff", "diff_b"),), ("alpha", "diff", "diff_b")),
)  # fmt: skip
"""The kinds, in the order in which a module is tried against them."""


def kind_of(suffixes: Collection[str]) -> Kind | None:
    """The kind of a module with these suffixes; None where no suffix tells one."""
    return next((kind for kind in KINDS if any(mark in suffixes for mark in kind.mark)), None)


def is_dora(suffixes: Collection[str]) -> bool:
    """Whether magnitudes stand beside the factors."""
    return any(name in suffixes for name in _DORA)


def split_flat(name: str) -> tuple[str, str]:
    """("lora_unet_conv_in", "lora_up.weight") of a flat name: it ends at its first dot."""
    module, _, suffix = name.partition(".")
    return module, {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}.get(suffix, suffix)


def split_dotted(name: str) -> tuple[str, str]:
    """("unet.conv_in", "lora_up.weight") of a dotted name; the suffix is "" where its ending is unknown.

    The numbers that xlabs' names carry in the ending (``qkv_lora1``) stay with the module.
    """
    found = _ENDING.search(name)
    if found is None:
        return name, ""
    module, ending = name[: found.start()], found[1]
    numbered = re.match(r"_(lora\d)\.", ending)
    return (f"{module}_{numbered[1]}" if numbered else module), ENDINGS[ending]

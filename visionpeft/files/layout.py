"""Whose layout a file has, and which module of which base each of its tensors belongs to: by names and shapes alone.

Nothing is refused here: what has no place is listed as ``strange``, for `read` to refuse and for `inspect` to tell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from visionpeft.files import cloneofsimo, dit_names
from visionpeft.files.names import STRUCTURE, Blocks, canonical_path, dotted, is_original
from visionpeft.files.parts import ENDINGS, PLAIN, kind_of, split_dotted, split_flat

Shapes = Mapping[str, Sequence[int]]

FLAT = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3", "oft_unet_": "unet", "oft_te_": "text_encoder", "lora_transformer_": "transformer",
    "lycoris_": "unet",
}  # fmt: skip
"""What flat names begin with -> the component."""

DOTTED = {
    "unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3", "transformer.": "transformer", "model.diffusion_model.": "unet",
    "diffusion_model.": "unet", "base_model.model.": "", "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2", "text_encoders.t5xxl.transformer.": "text_encoder_3",
}  # fmt: skip
"""What dotted names begin with -> the component; "" where the path has to tell it."""

_BARE = re.compile(r"(double_blocks|single_blocks|joint_blocks|down_blocks|mid_block|up_blocks)\.")
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_TEXT = {768: "sd1", 1024: "sd2"}
DITS = ("flux", "sd3")


class Where(NamedTuple):
    """Where a module stands: "component.canonical.path", several for a fused one, and how its rows are shared out."""

    places: tuple[str, ...]
    shares: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Found:
    """One module of a file.

    Attributes:
        name: what the file calls it.
        places: where it stands, "component.canonical.path"; several where one matrix of the file is several modules.
        shares: how its rows are shared out among them.
        keys: suffix -> the tensor's name in the file.
    """

    name: str
    places: tuple[str, ...]
    shares: tuple[int, ...]
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Parsed:
    """A file by its names.

    Attributes:
        layout: "kohya", "lycoris", "diffusers", "diffusers-old", "peft", "original" or "cloneofsimo".
        family: "sd1", "sd2", "sdxl", "sd3", "flux"; "" where nothing tells.
        modules: the modules, in the order of their names.
        words: trained words: word -> component -> the tensor's name.
        strange: names without a place, with what is wrong with each.
    """

    layout: str
    family: str
    modules: tuple[Found, ...]
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    strange: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def twice(self) -> list[str]:
        """The places that stand in the file under several names."""
        counted = Counter(place for found in self.modules for place in found.places)
        return sorted(place for place, count in counted.items() if count > 1)


def parse(shapes: Shapes, metadata: Mapping[str, str]) -> Parsed | None:
    """Sort a file's tensors by module; None where no name is one of a known layout.

    Args:
        shapes: tensor name -> shape.
        metadata: the header's entries.
    """
    names = sorted(shapes)
    layout = _layout(names)
    if layout is None:
        return None
    family = family_of(shapes, metadata)
    words, strange, grouped = _words(names), dict[str, str](), dict[str, dict[str, str]]()
    taken = {name for vectors in words.values() for name in vectors.values()}
    for name in names:
        if name not in taken:
            module, suffix = _split(name, layout)
            wrong = _wrong(name, suffix, grouped.get(module, {}))
            if wrong:
                strange[name] = wrong
            else:
                grouped.setdefault(module, {})[suffix] = name
    return _placed(layout, family, grouped, words, strange, metadata)


def _placed(
    layout: str,
    family: str,
    grouped: Mapping[str, Mapping[str, str]],
    words: Mapping[str, Mapping[str, str]],
    strange: dict[str, str],
    metadata: Mapping[str, str],
) -> Parsed:
    blocks = Blocks.read(metadata.get(STRUCTURE, ""))
    look = _numbered(metadata) if layout == "cloneofsimo" else partial(where, family=family, blocks=blocks)
    modules: list[Found] = []
    for module, keys in grouped.items():
        place = look(module)
        if place is None:
            strange |= dict.fromkeys(keys.values(), f"'{module}' is no module of a known base")
        else:
            modules.append(Found(module, place.places, place.shares, keys))
    kinds = {kind.name for found in modules if (kind := kind_of(found.keys))}
    if layout == "kohya" and kinds - {"lora"}:
        layout = "lycoris"
    return Parsed(layout, family, tuple(modules), words, strange)


def _layout(names: list[str]) -> str | None:
    if cloneofsimo.recognises(names):
        return "cloneofsimo"
    if any(name.startswith(tuple(FLAT)) for name in names):
        return "kohya"
    suffixed = [name for name in names if split_dotted(name)[1]]
    if any(name.startswith("base_model.model.") for name in suffixed):
        return "peft"
    if any(".processor." in name and not _BARE.match(name[:13]) for name in suffixed):
        return "diffusers-old"
    if any(name.startswith(("diffusion_model.", "model.diffusion_model.")) for name in suffixed):
        return "original"
    if any(name.startswith(tuple(DOTTED)) for name in suffixed):
        return "diffusers"
    bare = [name for name in suffixed if _BARE.match(name)]
    return None if not bare else "diffusers-old" if bare[0].startswith(("down", "mid", "up")) else "original"


def _split(name: str, layout: str) -> tuple[str, str]:
    if layout == "cloneofsimo":
        found = cloneofsimo.NAME.fullmatch(name)
        return (f"{found[1]}:{found[2]}", f"lora_{found[3]}.weight") if found else (name, "")
    if name.startswith(tuple(FLAT)):
        module, suffix = split_flat(name)
        return module, suffix if suffix in PLAIN else ""
    return split_dotted(name)


def _wrong(name: str, suffix: str, there: Mapping[str, str]) -> str:
    if not suffix:
        flat = name.startswith(tuple(FLAT))
        tail = name.partition(".")[2] if flat else name.rpartition(".")[2]
        if not flat and not name.startswith(tuple(DOTTED)):
            return f"'{name}' does not belong into such a file"
        return f"'{name}' has the unknown suffix '{tail}'; known are {', '.join([*PLAIN[:5], *list(ENDINGS)[:2]])} …"
    return f"'{name}' says again what '{there[suffix]}' says" if suffix in there else ""


def _words(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Bundled embeddings (``bundle_emb.NAME.clip_g``) and cloneofsimo's (``<s1>``)."""
    words: dict[str, dict[str, str]] = {}
    for name in names:
        if bundled := re.fullmatch(
            r"bundle_emb\.(.{1,200}?)\.(clip_[lg]|emb_params|string_to_param\.\*|[^.]{1,40})", name
        ):
            component = "text_encoder_2" if bundled[2] == "clip_g" else "text_encoder"
            words.setdefault(bundled[1], {})[component] = name
        elif cloneofsimo.WORD.fullmatch(name):
            words[name] = {"text_encoder": name}
    return words


def _numbered(metadata: Mapping[str, str]) -> Callable[[str], Where | None]:
    """Where cloneofsimo's numbers stand."""
    tables = {component: cloneofsimo.paths(component, metadata) for component in ("unet", "text_encoder")}

    def where(module: str) -> Where | None:
        component, _, number = module.partition(":")
        paths = tables.get(component, [])
        return Where((f"{component}.{paths[int(number)]}",)) if int(number) < len(paths) else None

    return where


def where(module: str, family: str, blocks: Blocks) -> Where | None:
    """Where a module of a file stands, by the name that the file gives it; None for no module of a known base.

    Args:
        module: a flat ("lora_unet_conv_in") or dotted ("unet.conv_in") name.
        family: "sd1", "sd2", "sdxl", "sd3", "flux", or "".
        blocks: the UNet's structure, for the original code's names.
    """
    for prefix, component in (*FLAT.items(), *DOTTED.items()):
        if module.startswith(prefix):
            return _where(component, module.removeprefix(prefix), family, blocks, flat=prefix in FLAT)
    return _where("", module, family, blocks, flat=False) if _BARE.match(module) else None


def _where(component: str, path: str, family: str, blocks: Blocks, *, flat: bool) -> Where | None:
    component = component or _component(path)
    if component.startswith("text_encoder"):
        return _text_place(component, path, family, flat=flat)
    if component == "model":
        return Where((f"model.{path}",))
    if family in DITS:
        return _dit_place(path, flat=flat, family=family)
    found = canonical_path(path if flat else _without_processor(path).replace(".", "_"), blocks)
    return Where((f"unet.{found}",)) if found else None


def _component(path: str) -> str:
    if re.match(
        r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|input_blocks)\b", path
    ):
        return "unet"
    if re.match(r"(text_model\.)?encoder\.layers\.\d+\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|out_proj|fc[12])$", path):
        return "text_encoder"
    transformer = re.match(
        r"(double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks)\.", path
    )
    return "transformer" if transformer else "model"


def _text_place(component: str, path: str, family: str, *, flat: bool) -> Where | None:
    if family == "flux" and component == "text_encoder_3":
        component = "text_encoder_2"  # kohya's scripts call Flux' T5 the third text encoder
    clean = dotted(path) if flat else _clip_names(path)
    if clean is None:
        return None
    if clean.startswith("encoder.layers."):
        clean = f"text_model.{clean}"
    return Where((f"{component}.{clean}",))


def _clip_names(path: str) -> str:
    """Diffusers once called CLIP's projections as the UNet's: ``self_attn.to_q`` is ``self_attn.q_proj``."""
    path = re.sub(r"\.self_attn\.to_([qkv])$", r".self_attn.\1_proj", path)
    return re.sub(r"\.self_attn\.to_out$", ".self_attn.out_proj", path)


def _without_processor(path: str) -> str:
    path = path.replace(".processor.", ".")
    return f"{path}.0" if path.endswith(".to_out") else path


def _dit_place(path: str, family: str, *, flat: bool) -> Where | None:
    found = dit_names.parted(path, family)
    if found is not None:
        return Where(tuple(f"transformer.{inner}" for inner in found.paths), found.shares)
    clean = (dotted(path) or "") if flat else path
    return Where((f"transformer.{clean}",)) if dit_names.is_diffusers(clean) else None


def family_of(shapes: Shapes, metadata: Mapping[str, str]) -> str:
    """Recognise the base's family by names, then the header, then widths; "" where nothing tells."""
    names = list(shapes)
    transformer = dit_names.family_of(names)
    if transformer:
        wide = any(len(shape) == 2 and shape[1] == 3072 for shape in shapes.values())
        return "flux" if wide else transformer
    if any(name.startswith(("lora_te2_", "lora_te1_", "text_encoder_2.")) or is_original(name) for name in names):
        return "sdxl"
    version = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture", "")
    starts = {"sdxl_": "sdxl", "stable-diffusion-xl": "sdxl", "sd_v2": "sd2", "stable-diffusion-v2": "sd2",
              "sd_v1": "sd1", "stable-diffusion-v1": "sd1"}  # fmt: skip
    known = [family for start, family in starts.items() if version.startswith(start)]
    return known[0] if known else _by_width(shapes)


def _by_width(shapes: Shapes) -> str:
    widths, texts = set[int](), set[int]()
    for name, shape in shapes.items():
        module, suffix = split_flat(name) if name.startswith(tuple(FLAT)) else split_dotted(name)
        if suffix in ("lora_down.weight", "hada_w1_b", "diff") and len(shape) >= 2:
            if re.search(r"attn2[._](processor\.)?to_[kv]$", module):
                widths.add(shape[1])
            elif "self_attn" in module:
                texts.add(shape[1])
        if re.fullmatch(r"text_encoder:\d+:down", name) and len(shape) == 2:
            texts.add(shape[1])
    if len(widths) == 1:
        return _WIDTHS.get(widths.pop(), "")
    return _TEXT.get(texts.pop(), "") if len(texts) == 1 and not widths else ""

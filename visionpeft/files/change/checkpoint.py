"""A checkpoint on the disk, tensor by tensor: where each parameter lies, under canonical names, and never all at once.

A single file in the original layout and a diffusers folder give the same names ("unet.mid_block.….weight",
"text_encoder.text_model.….bias", "vae.…"), so that either can be compared with either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from visionpeft import safefile
from visionpeft.errors import BaseModelError, did_you_mean
from visionpeft.models import original
from visionpeft.models.base import ASSETS, EMBEDDED

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae")
ADAPTED = COMPONENTS[:3]
"""Components that adapters change."""

_OLD_VAE = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Spot:
    """Where a parameter lies.

    Attributes:
        file: the file.
        key: the tensor's name there.
        third: which third of the tensor's rows, where q, k and v are stored as one.
        transposed: whether it is stored transposed.
    """

    file: Path
    key: str
    third: int | None = None
    transposed: bool = False

    def of(self, stored: Tensor) -> Tensor:
        """The parameter, as a view into the stored tensor: writing to it writes there."""
        part = stored if self.third is None else stored.chunk(3)[self.third]
        return part.mT if self.transposed else part


@dataclass(frozen=True)
class Checkpoint:
    """A whole model on the disk.

    Attributes:
        path: the file or folder.
        family: "sd1", "sd2" or "sdxl".
        headers: file -> its checked header.
        spots: "component.canonical.path.parameter" -> where it lies.
    """

    path: Path
    family: str
    headers: Mapping[Path, safefile.Header]
    spots: Mapping[str, Spot]
    _outlines: dict[Path, dict[str, Tensor]] = field(default_factory=dict[Path, dict[str, Tensor]], repr=False)

    def outline(self, file: Path) -> Mapping[str, Tensor]:
        """A file's tensors without values."""
        if file not in self._outlines:
            self._outlines[file] = safefile.outline(file, self.headers[file])
        return self._outlines[file]

    def stored(self, file: Path, key: str) -> Tensor:
        """One tensor as the file has it."""
        return safefile.read_tensor(file, self.headers[file], key)

    def value(self, name: str) -> Tensor:
        """One parameter in the type of the file."""
        spot = self.spots[name]
        return spot.of(self.stored(spot.file, spot.key))

    def like(self, name: str) -> Tensor:
        """One parameter without its values: shape and type."""
        spot = self.spots[name]
        return spot.of(self.outline(spot.file)[spot.key])

    @cached_property
    def contents(self) -> Mapping[tuple[Path, str], list[str]]:
        """(file, key) -> the parameters in that tensor."""
        found: dict[tuple[Path, str], list[str]] = {}
        for name, spot in self.spots.items():
            found.setdefault((spot.file, spot.key), []).append(name)
        return found

    @property
    def weights(self) -> Weights:
        """The layers' weights, read when they are asked for."""
        return Weights(self)

    @property
    def shapes(self) -> dict[str, Tensor]:
        """The layers' weights by "component.path" without values: for names and strict checks of shapes."""
        return {name.removesuffix(".weight"): self.like(name) for name in self.spots if self.is_layer(name)}

    def is_layer(self, name: str) -> bool:
        """Whether a parameter is the weight of a linear layer or convolution that adapters can change."""
        component, _, path = name.partition(".")
        inside = component in ADAPTED and path.endswith(".weight") and "embeddings." not in path
        return inside and self.like(name).ndim in (2, 4)


class Weights(Mapping[str, Tensor]):
    """Base weights at "component.path" and biases at "component.path.bias", as `to_lora(base=…)` takes them.

    Each is read from the disk when it is asked for, and not kept.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        layers = [name.removesuffix(".weight") for name in checkpoint.spots if checkpoint.is_layer(name)]
        biases = {f"{place}.bias": f"{place}.bias" for place in layers if f"{place}.bias" in checkpoint.spots}
        self._names = {place: f"{place}.weight" for place in layers} | biases

    def __getitem__(self, place: str) -> Tensor:
        return self._checkpoint.value(self._names[place])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(ref: str | Path) -> Checkpoint:
    """Read the names and shapes of a checkpoint; its values stay on the disk.

    Args:
        ref: a single `.safetensors` file in the original layout of SD 1.x, SD 2.x or SDXL, a diffusers folder, or
            "visionpeft/emoji-sd".

    Raises:
        BaseModelError: there is none, or it is of an unknown kind; says what is missing.
        FileFormatError: a file is not whole.
    """
    path = ASSETS / EMBEDDED[str(ref)] if str(ref) in EMBEDDED else Path(ref)
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        there = [*EMBEDDED, *(str(other) for other in path.parent.glob("*"))]
        raise BaseModelError(
            f"{ref}: there is no such checkpoint; give a .safetensors file or a diffusers folder on this machine."
            f"{did_you_mean(str(ref), there)}"
        )
    return _from_file(path)


def _from_file(path: Path) -> Checkpoint:
    header = safefile.read_header(path)
    outline = safefile.outline(path, header)
    try:
        family = original.family_name(outline)
        spots = _original_spots(path, outline, family)
    except BaseModelError as error:
        raise BaseModelError(f"{path}: {error}") from None
    except (KeyError, IndexError, ValueError) as error:
        raise BaseModelError(f"{path}: not a whole checkpoint: {error} is missing or misshapen.") from error
    return Checkpoint(path, family, {path: header}, spots)


def _original_spots(path: Path, outline: Mapping[str, Tensor], family: str) -> dict[str, Spot]:
    spots: dict[str, Spot] = {}
    unet, vae = (original.part(outline, prefix) for prefix in (original.UNET, original.VAE))
    spots |= {f"unet.{new}": Spot(path, original.UNET + key) for key, new in original.unet_names(unet).items()}
    spots |= {f"vae.{new}": Spot(path, original.VAE + key) for key, new in original.vae_names(vae).items()}
    for encoder, (prefix, open_clip) in original.ENCODERS[family].items():
        keys = original.part(outline, prefix)
        for key, names in original.text_names(keys, family, encoder).items():
            turned = open_clip and key == original.PROJECTION
            for number, new in enumerate(names):
                third = number if len(names) == 3 else None
                spots[f"{encoder}.{new}"] = Spot(path, prefix + key, third, turned)
    return spots


def _from_folder(folder: Path) -> Checkpoint:
    headers: dict[Path, safefile.Header] = {}
    spots: dict[str, Spot] = {}
    for component in COMPONENTS:
        for file in weight_files(folder / component) if (folder / component).is_dir() else []:
            headers[file] = safefile.read_header(file)
            for key in headers[file].tensors:
                if not key.endswith("position_ids"):
                    spots[f"{component}.{_canonical(component, key)}"] = Spot(file, key)
    if not any(name.startswith("unet.") for name in spots):
        raise BaseModelError(f"{folder}: no UNet is in it; give the folder of a Stable Diffusion pipeline.")
    found = Checkpoint(folder, "", headers, spots)
    return Checkpoint(folder, _folder_family(found), headers, spots)


def _canonical(component: str, key: str) -> str:
    if component == "vae":
        for old, new in _OLD_VAE.items():
            key = key.replace(old, new)
        return key
    flat = component.startswith("text_encoder") and not key.startswith(("text_model.", "text_projection."))
    return f"text_model.{key}" if flat else key


def _folder_family(checkpoint: Checkpoint) -> str:
    if any(name.startswith("text_encoder_2.") for name in checkpoint.spots):
        return "sdxl"
    for name in checkpoint.spots:
        if re.search(r"^unet\..*attentions\.0\.proj_in\.weight$", name):
            return "sd1" if checkpoint.like(name).ndim == 4 else "sd2"
    raise BaseModelError(f"{checkpoint.path}: its UNet has no attention; this is no Stable Diffusion.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a component: one, or those that its index names; else the "fp16" variant's.

    Raises:
        BaseModelError: there are none, or several without an index.
    """
    for variant in ("", ".fp16"):
        indexes = sorted(folder.glob(f"*.safetensors.index{variant}.json"))
        if indexes:
            return _indexed(indexes[0])
        files = [p for p in sorted(folder.glob("*.safetensors")) if _variant(p) == variant]
        if len(files) == 1:
            return files
        if files:
            raise BaseModelError(f"{folder}: {files[0].name} and {files[1].name} are there; leave the one to be used.")
    raise BaseModelError(f"{folder}: no .safetensors there; convert the weights to safetensors (pickles are refused).")


def _variant(file: Path) -> str:
    stem = file.name.removesuffix(".safetensors")
    return ".fp16" if ".fp16" in stem else ""


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        plain = bool(names) and all(name == Path(name).name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain, names = False, []
    if not plain:
        raise BaseModelError(f"{index}: no index of safetensors files in this folder; it is damaged.")
    return [index.parent / name for name in names]

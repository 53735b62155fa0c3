"""From pictures to what a vision model sees, with Pillow and numpy alone; and where a box in a picture comes to lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from visionpeft.errors import BaseModelError

Triple = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=16384)]
Positive = Annotated[float, Field(gt=0)]
HALF: Triple = (0.5, 0.5, 0.5)
_SLACK = 1e-4  # of a pixel: 224 · (w / 224) may come to a little less than w
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Placement(NamedTuple):
    """Where a picture lies in the pixels: ``pixel = place · scale + offset``, x and y apart."""

    scale: tuple[float, float]
    offset: tuple[float, float]


class Preprocessing(BaseModel):
    """How a model wants its pictures; saved with an adapter's heads.

    Attributes:
        size: (height, width) of the pixels that the model sees.
        mean: subtracted from red, green and blue in [0, 1].
        std: what they are divided by then.
        fit: "stretch" to the size; "crop" the middle out of a picture whose shorter side was made `size / crop_pct`;
            or "pad" the whole picture, proportions kept, at the right and the bottom with the mean colour.
        resample: how pixels are made when the size changes.
        crop_pct: the share of the shorter side that "crop" keeps.
        shortest: with "pad", pixels that the shorter side of a picture has at most; None: as many as there is room for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side]
    mean: Triple = HALF
    std: tuple[Positive, Positive, Positive] = HALF
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = Field(default=1.0, gt=0, le=1)
    shortest: Side | None = None

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return [N, 3, H, W], float32, normalised, on the CPU.

        Raises:
            ValueError: no pictures.
        """
        if not images:
            raise ValueError("no pictures to prepare")
        return torch.from_numpy(np.stack([self._pixels(image) for image in images]))

    def masks(self, images: Sequence[Image.Image]) -> Tensor:
        """Return [N, H, W], int64: 1 where there is picture, 0 where there is padding."""
        height, width = self.size
        masks = torch.zeros(len(images), height, width, dtype=torch.int64)
        for mask, image in zip(masks, images, strict=True):
            across, down = self._resized(image.width, image.height)
            mask[:down, :across] = 1
        return masks

    def placement(self, width: int, height: int) -> Placement:
        """Where a picture of this width and height lies in the pixels; negative offsets are cut off."""
        across, down = self._resized(width, height)
        left, top = self._corner(across, down)
        return Placement((across / width, down / height), (-left, -top))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        down, across = self.size
        if self.fit == "stretch":
            return across, down
        choose, zoom = (max, self.crop_pct) if self.fit == "crop" else (min, 1.0)
        scale = choose(across / width, down / height) / zoom
        if self.fit == "pad" and self.shortest is not None:
            scale = min(scale, self.shortest / min(width, height))
        return max(1, int(width * scale + _SLACK)), max(1, int(height * scale + _SLACK))

    def _corner(self, across: int, down: int) -> tuple[int, int]:
        return ((across - self.size[1]) // 2, (down - self.size[0]) // 2) if self.fit == "crop" else (0, 0)

    def _pixels(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        across, down = self._resized(image.width, image.height)
        left, top = self._corner(across, down)
        picture = image.convert("RGB").resize((across, down), _RESAMPLING[self.resample])
        shown = picture.crop((left, top, min(left + self.size[1], across), min(top + self.size[0], down)))
        values = np.asarray(shown, dtype=np.float32) / np.float32(255)
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        whole = np.zeros((3, *self.size), np.float32)
        whole[:, : values.shape[0], : values.shape[1]] = values.transpose(2, 0, 1)
        return whole

    def at(self, height: int, width: int) -> Preprocessing:
        """The same, for pixels of another size."""
        return self.model_copy(update={"size": (height, width)})


def read_processor(config: Mapping[str, Any], size: tuple[int, int]) -> tuple[Preprocessing, list[str]]:
    """Read a `preprocessor_config.json` of transformers.

    Args:
        config: its keys.
        size: (height, width) that the model was made for, where the file names none.

    Returns:
        the preprocessing, and one line for each thing that is done in another way than there.

    Raises:
        BaseModelError: a key is of a form that is not known.
    """
    try:
        found, lines = _size(config, size)
        known = {2: "bilinear", 3: "bicubic"}
        resample = config.get("resample", 2)
        if resample not in known:
            lines.append(f"pictures are resized bicubically instead of by Pillow's filter {resample}")
        normal = config.get("do_normalize", True)
        scale = round(255 * float(config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1), 6)
        mean, std = (config["image_mean"], config["image_std"]) if normal else ((0.0,) * 3, (1.0,) * 3)
        values = {"mean": [float(value) / scale for value in mean], "std": [float(value) / scale for value in std]}
        return Preprocessing.model_validate({**found, **values, "resample": known.get(resample, "bicubic")}), lines
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BaseModelError(
            f"The model's preprocessor_config.json is not understood ({type(error).__name__}: {error}): expected"
            " the keys size, image_mean and image_std of an image processor of transformers."
        ) from error


def _size(config: Mapping[str, Any], size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    given = config.get("size")
    if not config.get("do_resize", True) or given is None:
        return {"size": size}, []
    table: Mapping[str, Any] = {"shortest_edge": given} if isinstance(given, int) else given
    if "height" in table:
        return {"size": (int(table["height"]), int(table["width"]))}, []
    short = int(table["shortest_edge"])
    if "longest_edge" in table or "pad_size" in config:
        line = f"pictures are fitted into {short}x{short} pixels, not to a shorter side of {short}"
        if "longest_edge" in table:
            line += f"; for that set image_size: {table['longest_edge']} and shortest: {short}"
        return {"size": (short, short), "fit": "pad"}, [line]
    if "crop_pct" in config and short < 384:
        return {"size": (short, short), "fit": "crop", "crop_pct": float(config["crop_pct"])}, []
    if not config.get("do_center_crop", False):
        line = f"pictures are stretched to {short}x{short} pixels, not to a shorter side of {short}"
        return {"size": (short, short)}, [line] if isinstance(given, Mapping) and "crop_pct" not in config else []
    crop = config.get("crop_size", short)
    height, width = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    return {"size": (height, width), "fit": "crop", "crop_pct": min(1.0, min(height, width) / short)}, []

"""Where on the picture an adapter acts: a mask for each, and which adapters act at which pixel of the latent."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visionpeft.errors import ConfigError, DataError, FileFormatError

MOST_REGIONS = 8
_LARGEST = 8192
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


@dataclass(frozen=True)
class Region:
    """A mask: how far an adapter acts at each of its pixels.

    Attributes:
        width: in pixels of the mask; any number, the mask is scaled to the latent.
        height: in pixels of the mask.
        values: a byte a pixel, row by row: 255 acts whole, 0 not at all.
    """

    width: int
    height: int
    values: bytes

    def picture(self) -> Image.Image:
        """The mask as a grey picture."""
        return Image.frombytes("L", (self.width, self.height), self.values)

    def resized(self, width: int, height: int) -> Region:
        """The mask at another size, each pixel the mean of what it covers; the same where the size is.

        Raises:
            ConfigError: the sides are not in the same proportion.
        """
        if (width, height) == (self.width, self.height):
            return self
        if abs(self.width * height - self.height * width) > max(self.width, self.height):
            raise ConfigError(
                f"a mask of {self.width} x {self.height} pixels does not fit a picture with sides as {width} to"
                f" {height}: give one in the picture's proportions."
            )
        return region_of(self.picture().resize((width, height), Image.Resampling.BOX))

    def text(self) -> str:
        """The mask as a PNG in base64, for recipes."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "PNG", optimize=True)
        return b64encode(buffer.getvalue()).decode()


def region_of(picture: Image.Image) -> Region:
    """Return a picture as a mask: white acts, black does not, grey by half."""
    grey = picture.convert("L")
    return Region(grey.width, grey.height, grey.tobytes())


def read_region(path: str | Path) -> Region:
    """Read a mask from a picture file.

    Raises:
        DataError: it is no picture, or larger than 8192 pixels.
    """
    return _read(path, str(path), _FORMATS)


def region_from_text(text: str) -> Region:
    """Return the mask that :meth:`Region.text` wrote.

    Raises:
        FileFormatError: it is no PNG in base64.
    """
    try:
        return _read(io.BytesIO(b64decode(text, validate=True)), "the mask", ("PNG",))
    except (ValueError, DataError) as error:
        raise FileFormatError(f"a mask of the recipe is damaged: {error}") from error


def _read(source: str | Path | io.BytesIO, name: str, formats: Sequence[str]) -> Region:
    try:
        with Image.open(source, formats=list(formats)) as picture:
            if max(picture.size) > _LARGEST:
                raise DataError(f"{name}: a mask has at most {_LARGEST} pixels a side, not {max(picture.size)}.")
            return region_of(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no picture that can be read as a mask: {error}.") from error


def divided(
    names: Sequence[str], regions: Mapping[str, Region], size: tuple[int, int]
) -> list[tuple[set[str], Tensor]]:
    """Return the sets of adapters that act together somewhere, each with its share [1, 1, h, w] of every pixel.

    With mᵢ the mask of adapter i, the share of a set S is Π mᵢ over S times Π (1 - mᵢ) over the rest: 1 where just the
    adapters of S are, and straight between where masks are grey. The shares of a pixel add up to 1; a set that is
    nowhere is left out. An adapter without a mask is in every set.

    Args:
        names: the adapters that act.
        regions: name -> mask.
        size: (height, width) of the latent.

    Raises:
        ConfigError: more than 8 masks, or one that is not in the picture's proportions.
    """
    masked = [name for name in names if name in regions]
    if len(masked) > MOST_REGIONS:
        raise ConfigError(f"{len(masked)} adapters have a mask each: at most {MOST_REGIONS} may have one.")
    free = set(names) - set(masked)
    masks = {name: _values(regions[name], size) for name in masked}
    found: list[tuple[set[str], Tensor]] = []
    for chosen in product((False, True), repeat=len(masked)):
        share = torch.ones(1, 1, *size)
        for name, inside in zip(masked, chosen, strict=True):
            share = share * (masks[name] if inside else 1 - masks[name])
        if bool(share.any()):
            found.append((free | {name for name, inside in zip(masked, chosen, strict=True) if inside}, share))
    return found


def _values(region: Region, size: tuple[int, int]) -> Tensor:
    height, width = size
    mask = region.resized(width, height)
    values = np.frombuffer(mask.values, np.uint8).reshape(height, width).astype(np.float32) / 255
    return torch.from_numpy(values)[None, None]

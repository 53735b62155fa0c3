"""What a picture of one thing on a coloured background shows, read from its pixels alone.

The embedded base is asked for things such as "a small red apple at the top left, on a striped blue background".
These functions check the part of an answer that needs no model: which named colour the background has and where the
thing is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from visionpeft.errors import DataError

Picture = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "gray": (150, 150, 150),
    "black": (28, 28, 28),
    "red": (215, 40, 45),
    "orange": (245, 140, 35),
    "yellow": (250, 218, 70),
    "green": (65, 165, 75),
    "light blue": (150, 208, 248),
    "blue": (42, 98, 212),
    "purple": (128, 66, 180),
    "pink": (246, 150, 195),
    "brown": (122, 78, 48),
}
"""Named background colours as sRGB, 0..255; no two are nearer than 28 in CIE L*a*b*."""

BORDER = 0.04
"""Width of the ring that is taken for background, as a share of the shorter side."""

LOW, HIGH = 0.41, 0.59
"""Limits of "center" on both axes, as shares of the picture."""


def to_lab(rgb: npt.ArrayLike) -> Array:
    """CIE L*a*b* (D65) of sRGB values in 0..255; any shape that ends in 3."""
    srgb = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    scaled = xyz / np.array([0.9505, 1.0, 1.089])
    root = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def border(picture: Picture) -> Array:
    """Colours of the outermost ring of pixels: (pixels, 3), 0..255.

    Raises:
        DataError: the picture is not height × width × 3, uint8.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(
            f"a picture must have height, width and 3 channels of uint8, not {picture.shape} {picture.dtype}; use RGB"
        )
    width = max(1, round(BORDER * min(picture.shape[:2])))
    inner = np.zeros(picture.shape[:2], dtype=bool)
    inner[width:-width, width:-width] = True
    return picture[~inner].astype(np.float64)


def background_colour(picture: Picture) -> str:
    """The name in :data:`COLOURS` nearest to most of the border, in CIE L*a*b*.

    A textured background shows a colour and a lighter or darker shade of it: each border pixel votes for the names
    near it, so two shades of blue are blue. ``picture`` is height × width × 3, uint8.
    """
    names = list(COLOURS)
    distance = np.linalg.norm(to_lab(border(picture))[:, None] - to_lab(list(COLOURS.values()))[None], axis=-1)
    votes = np.exp(-((distance / 18) ** 2)).sum(axis=0) + 1e-9 * -distance.mean(axis=0)
    return names[int(votes.argmax())]


def foreground(picture: Picture, threshold: float = 45.0) -> npt.NDArray[np.bool_]:
    """Where the thing is: pixels further than ``threshold`` (RGB, 0..441) from every background colour.

    The border's colours lie on a line between the background's two shades (gradients and soft edges are mixtures of
    them); whatever lies away from that line is the thing. Returns a mask, height × width.
    """
    ring = border(picture)
    middle = np.median(ring, axis=0)
    near = ring[np.linalg.norm(ring - middle, axis=1) <= np.quantile(np.linalg.norm(ring - middle, axis=1), 0.9)]
    centre = near.mean(axis=0)
    axis = np.linalg.svd(near - centre, full_matrices=False)[2][0]
    along = (near - centre) @ axis
    low, high = np.quantile(along, [0.01, 0.99])
    pixels = picture.astype(np.float64) - centre
    nearest = np.clip(pixels @ axis, low, high)[..., None] * axis
    return np.linalg.norm(pixels - nearest, axis=-1) > threshold


def object_position(picture: Picture) -> tuple[float, float] | None:
    """Centre of the thing as (x, y) in 0..1 from the top left corner; None where nothing stands out.

    It is the middle of the box that holds all but the outermost 2 % of the foreground on each side.
    """
    rows, columns = np.nonzero(foreground(picture))
    if len(rows) < 0.005 * picture.shape[0] * picture.shape[1]:
        return None
    x, y = (np.quantile(places, [0.02, 0.98]).mean() for places in (columns, rows))
    return float((x + 0.5) / picture.shape[1]), float((y + 0.5) / picture.shape[0])


def position_word(x: float, y: float) -> str:
    """One of nine words for a place in 0..1: "top left", "top", …, "center", …, "bottom right"."""
    across = "left" if x < LOW else "right" if x > HIGH else ""
    down = "top" if y < LOW else "bottom" if y > HIGH else ""
    return f"{down} {across}".strip() or "center"

"""What a picture looks like, in a few bytes: equal for equal pixels, near for a copy that was scaled or saved again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIDE = 32
"""Side of the small grey picture that is compared, in pixels."""
BITS = 63
"""Bits of a perceptual hash: the 8 by 8 lowest frequencies without the mean."""


@dataclass(frozen=True)
class Fingerprint:
    """What a picture looks like.

    Attributes:
        pixels: SHA-256 of its decoded RGB values and size.
        bits: [63] bool, for each of the lowest frequencies of the small grey picture whether it is above their median
            (a perceptual hash).
        small: [32, 32] uint8, the small grey picture.
    """

    pixels: bytes
    bits: np.ndarray[Any, np.dtype[np.bool_]]
    small: np.ndarray[Any, np.dtype[np.uint8]]


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the fingerprint of an RGB picture."""
    content = hashlib.sha256(f"{image.size}".encode())
    content.update(image.tobytes())
    small = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    low = np.asarray(dctn(small.astype(np.float64), norm="ortho"))[:8, :8].ravel()[1:]
    return Fingerprint(content.digest(), low > np.median(low), small)


def correlation(first: Fingerprint, second: Fingerprint) -> float:
    """Return the correlation of the two small grey pictures, -1 to 1; of a flat one, 1 where both are equal, else 0."""
    a, b = (print_.small.astype(np.float64).ravel() for print_ in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    if norm == 0:
        return float(np.array_equal(first.small, second.small))
    return float(a @ b) / norm

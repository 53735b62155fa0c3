"""From measured values to grey: a window of values becomes black to white, what lies outside is clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from visionpeft.data.classification.settings import IntensityConfig

Values = np.ndarray[Any, np.dtype[Any]]
Ends = tuple[float, float]
"""The value that becomes black, and the one that becomes white."""


def linear(values: Values, ends: Ends) -> Values:
    """Return ``(values - black) / (white - black)`` clipped to [0, 1], float64; where both are equal, a step."""
    black, white = ends
    if white <= black:
        return (values > black).astype(np.float64)
    return np.clip((values.astype(np.float64) - black) / (white - black), 0.0, 1.0)


def fixed_ends(config: IntensityConfig) -> Ends:
    """Return the ends ``center ± width / 2`` of a fixed window.

    Raises:
        ValueError: the settings hold no window.
    """
    if config.center is None or config.width is None:
        raise ValueError("no fixed window")
    return config.center - config.width / 2, config.center + config.width / 2


def percentile_ends(values: Values, percentiles: tuple[float, float]) -> Ends:
    """Return the two percentiles of the values."""
    low, high = np.percentile(values, percentiles)
    return float(low), float(high)


def grey_picture(shares: Values) -> Image.Image:
    """Return [height, width] from 0 (black) to 1 (white) as an 8-bit RGB picture, rounded to the nearest."""
    return Image.fromarray(np.rint(shares * 255).astype(np.uint8)).convert("RGB")

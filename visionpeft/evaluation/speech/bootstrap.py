"""How far a rate would move with other utterances of the same kind: the bootstrap over utterances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

_CELLS = 4_000_000
"""Numbers held at once."""


def rate_interval(
    errors: NDArray[np.int64], totals: NDArray[np.int64], *, resamples: int, level: float, seed: int
) -> Interval | None:
    """Return the percentile interval of Σ errors / Σ totals over resamples of the utterances.

    None where there is nothing to resample: fewer than two utterances, no resamples, or no resample with a total.

    Args:
        errors: [n], of each utterance.
        totals: [n], what they are divided by: words of the reference, spoken terms.
        resamples: how many; a few hundred are enough for two decimals.
        level: share of the resamples that lie within.
        seed: of the draw.
    """
    count = len(errors)
    if count < 2 or not resamples:
        return None
    rng, shares = np.random.default_rng([seed, resamples]), np.full(count, 1 / count)
    rates: list[NDArray[np.float64]] = []
    rows = max(1, _CELLS // count)
    for start in range(0, resamples, rows):
        weights = rng.multinomial(count, shares, size=min(rows, resamples - start))
        whole = weights @ totals
        rates.append((weights @ errors)[whole > 0] / whole[whole > 0])
    found = np.concatenate(rates)
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

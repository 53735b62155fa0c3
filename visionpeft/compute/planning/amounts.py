"""Amounts of memory as people write them: "8GB", "7.5 GiB", 8589934592."""

from __future__ import annotations

import re

from visionpeft.errors import ConfigError

_POWERS = {f"{letter}{end}": power + 1 for power, letter in enumerate("KMGT") for end in ("B", "IB", "")}
_UNITS = {"": 1, "B": 1, **{name: 1024**power for name, power in _POWERS.items()}}
_WRITTEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
_LEAST = 64 * 1024**2
"""Less than this is no GPU's memory: a unit was forgotten."""


def bytes_of(amount: str | int | float) -> int:
    """Return a number of bytes; GB is what makers of GPUs mean by it, 1024³ bytes, the same as GiB.

    Args:
        amount: "8GB", "8GiB", "7.5 GB", "8192MiB", "8G", or bytes.

    Raises:
        ConfigError: it is no such amount, or less than 64 MiB.
    """
    read = _WRITTEN.fullmatch(str(amount))
    if read is None or read[2].upper() not in _UNITS:
        raise ConfigError(f"'{amount}' is no amount of memory: write it as 8GB, 7.5GiB, 8192MiB or in bytes.")
    count = round(float(read[1]) * _UNITS[read[2].upper()])
    if count < _LEAST:
        raise ConfigError(f"'{amount}' is less than 64 MiB, on which nothing trains: was a unit meant, as in 8GB?")
    return count

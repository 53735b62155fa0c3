"""What a continued run must share with its beginning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from visionpeft.errors import ConfigError

_ABSENT = "(not set)"


def require_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue with settings that would alter what was already done.

    Args:
        then: nested settings at the beginning, JSON values.
        now: those of the continuation.

    Raises:
        ConfigError: names each differing key with both values.
    """
    old, new = _flat(then), _flat(now)
    differing = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    if differing:
        lines = [f"{key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}" for key in differing]
        raise ConfigError(
            "the run began with other settings, so it cannot go on: "
            + "; ".join(lines)
            + ". Set them back, or begin a new run in another output."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value)
    return found

"""What another library's error says, cut to fit into one of our lines."""

from __future__ import annotations

_LONGEST = 200


def reason(error: BaseException) -> str:
    """Return the error's message on one line of at most 200 characters, without a stop; its kind where it has none."""
    return " ".join(str(error).split())[:_LONGEST].rstrip(".?! ") or type(error).__name__

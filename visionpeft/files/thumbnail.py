"""ModelSpec's thumbnail: a small JPEG or PNG inside the header, as a data URI."""

from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path

from visionpeft.errors import FileFormatError

MOST = 64 * 1024
"""Bytes of a picture in a header: every program that lists files reads it whole."""

_SIDE = 256
_STARTS = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_URI = re.compile(r"data:image/(jpeg|png);base64,([A-Za-z0-9+/=]+)")


def thumbnail(path: str | Path) -> str:
    """Return a picture as a JPEG data URI of at most 256 pixels a side and `MOST` bytes.

    Raises:
        FileFormatError: no picture that can be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * _SIDE, 2 * _SIDE))
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path} is no picture that can be read: {error}") from error
    picture.thumbnail((_SIDE, _SIDE))
    for quality in (90, 75, 50, 25):
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=quality)
        if len(stored.getvalue()) <= MOST:
            break
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()


def check_thumbnail(text: str) -> None:
    """Check that an entry is a JPEG or PNG data URI of at most `MOST` bytes.

    Raises:
        FileFormatError: it is not.
    """
    found = _URI.fullmatch(text)
    if found is None or len(found[2]) > MOST * 4 // 3 + 4:
        raise FileFormatError(
            f"the ModelSpec entry 'thumbnail' should be data:image/jpeg;base64,… or image/png of at most {MOST} bytes,"
            f" not '{text[:40]}' of {len(text)}; files.thumbnail(picture) makes one"
        )
    try:
        data = base64.b64decode(found[2], validate=True)
    except binascii.Error as error:
        raise FileFormatError(f"the ModelSpec entry 'thumbnail' is no base64: {error}") from error
    if not data.startswith(_STARTS[found[1]]):
        raise FileFormatError(f"the ModelSpec entry 'thumbnail' says image/{found[1]} and holds something else")

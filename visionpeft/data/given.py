"""What files from elsewhere say, taken with care: paths within their folder, text of bounded size, names of splits."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from visionpeft.errors import DataError, did_you_mean

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""How people write a split (in small letters) -> what it is called here."""


def split_named(text: str) -> str:
    """Return "train", "validation" or "test" for how people write them.

    Raises:
        DataError: it is none of them.
    """
    found = SPLITS.get(text.strip().lower())
    if found is None:
        near = did_you_mean(text.strip().lower(), SPLITS)
        raise DataError(f"the split '{text}' is none of train, validation and test.{near}")
    return found


def inside(folder: Path, name: str, said_by: Path) -> Path:
    """Return ``folder / name`` for a name that a file gives.

    Raises:
        DataError: the name leads out of the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataError(f"{said_by} names the file {name[:80]!r}: expected a path within {folder}")
    return folder.joinpath(*parts.parts)


def text_of(path: Path, most_bytes: int) -> str:
    """Return the text of a file of at most ``most_bytes``.

    Raises:
        DataError: it is missing, larger, or not UTF-8.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise DataError(f"{path} is larger than {most_bytes:,} bytes: it is not what it should be")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error

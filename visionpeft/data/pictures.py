"""Reading pictures as people have them: turned by EXIF, CMYK, palette, 16-bit, transparent; refusing what is none."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from visionpeft.errors import DataError, did_you_mean
from visionpeft.progress import SILENT, Progress

Reduce = Callable[[Image.Image], Image.Image]
Deep = Callable[[Image.Image, Path], Image.Image]
"""Brings a picture with more than 8 bits a value (mode I or F) to 8 bits; returns any other as it is."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
NEEDS_CONVERSION = frozenset({".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
SMALLEST_SIDE = 16
LARGEST_SIDE = 16_384
LARGEST_AREA = 178_956_970
"""Pixels in all (Pillow's own bound, a quarter of a gigabyte when decoded)."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError)
_SHOWN = 5


@dataclass(frozen=True)
class Picture:
    """A picture of a folder, read and checked.

    Attributes:
        path: where it was read from.
        image: 8-bit RGB, upright, at its own size.
        digest: SHA-256 of the file's bytes, in hexadecimal.
        transparent: whether it had transparent parts; they are white now.
    """

    path: Path
    image: Image.Image
    digest: str
    transparent: bool


def picture_paths(folder: str | Path, progress: Progress = SILENT) -> list[Path]:
    """Return the pictures in ``folder``, sorted by name; what is left out is named in one line.

    Hidden files (their name begins with a dot) are passed over. Folders inside are not searched.

    Raises:
        DataError: the folder is missing, is a file, cannot be read, or holds no pictures; or it holds pictures in a
            format that has to be converted first.
    """
    folder = Path(folder)
    files = [path for path in _listed(folder) if path.is_file() and not path.name.startswith(".")]
    found = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    foreign = sorted(path.name for path in files if path.suffix.lower() in NEEDS_CONVERSION)
    if foreign:
        raise DataError(f"{folder}: {_some(foreign)} cannot be read: convert to PNG or JPEG, or take away.")
    if not found:
        raise DataError(f"{folder} holds no pictures ({_kinds()}).{_where_pictures_are(folder)}")
    skipped = sorted(path.name for path in files if path.suffix.lower() not in SUFFIXES)
    if skipped:
        progress.say(f"{folder}: left out {_some(skipped)}: not a picture ({_kinds()}).")
    return found


def read_picture(path: str | Path) -> Image.Image:
    """Return the picture as 8-bit RGB [height, width], upright, at its own size.

    EXIF rotation is applied; an embedded colour profile is converted to sRGB; 16-bit values are divided by 257;
    transparent parts become white; of an animation the first frame is taken.

    Raises:
        DataError: the file is missing, no picture, truncated, too small (a side under 16 pixels) or too large (a side
            over 16,384 pixels, or 178,956,970 pixels in all: known from the header, before anything is decoded).
    """
    return load(path).image


def load(path: str | Path) -> Picture:
    """Read and check one picture, as :func:`read_picture` does, with the hash of its file.

    Raises:
        DataError: as :func:`read_picture`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.{_nearest(path)}") from error
    return decode(content, path)


def decode(content: bytes, path: Path, deep: Deep | None = None) -> Picture:
    """Decode and check a picture whose bytes are at hand, as :func:`load` does.

    Args:
        content: of the picture's file.
        path: what it is called in messages.
        deep: how values of more than 8 bits become 8 bits; None divides 16 bits by 257 and refuses 32.

    Raises:
        DataError: as :func:`read_picture`.
    """
    image, transparent = _upright_rgb(_decoded(content, path), path, deep or eight_bit)
    return Picture(path, image, hashlib.sha256(content).hexdigest(), transparent)


def load_folder(folder: str | Path, progress: Progress = SILENT, reduce: Reduce | None = None) -> list[Picture]:
    """Return the pictures of ``folder``, sorted by name; see :func:`load_all`.

    Raises:
        DataError: as :func:`picture_paths` and :func:`read_picture`.
    """
    return load_all(picture_paths(folder, progress), progress, reduce)


def load_all(paths: Sequence[Path], progress: Progress = SILENT, reduce: Reduce | None = None) -> list[Picture]:
    """Return the pictures of ``paths``; duplicates and transparency are told in one line each.

    Args:
        paths: at least one file.
        progress: where the lines go.
        reduce: applied to each picture as it is read, so that large photos are never in memory together.

    Raises:
        DataError: as :func:`read_picture`.
    """
    pictures: list[Picture] = []
    for path in paths:
        picture = load(path)
        pictures.append(replace(picture, image=reduce(picture.image)) if reduce else picture)
    for line in remarks(pictures):
        progress.say(f"{paths[0].parent}: {line}")
    return pictures


def remarks(pictures: Sequence[Picture]) -> list[str]:
    """Return what a user should know of ``pictures``: one line for duplicates, one for transparency."""
    lines: list[str] = []
    same: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        same[picture.digest].append(picture.path.name)
    copies = [" = ".join(names) for names in same.values() if len(names) > 1]
    if copies:
        lines.append(f"the same file more than once, it will count more than once: {_some(copies)}.")
    clear = [picture.path.name for picture in pictures if picture.transparent]
    if clear:
        lines.append(f"transparent parts were put on white: {_some(clear)}.")
    return lines


def _listed(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist.{_nearest(folder)}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: name the folder that holds the pictures.")
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror}.") from error


def _nearest(path: Path) -> str:
    """Name the entry of the nearest existing folder above ``path`` that looks most like the missing part."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    siblings = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    return did_you_mean(missing.name, siblings)


def _where_pictures_are(folder: Path) -> str:
    inner = Counter(path.parent.name for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not inner:
        return " Put at least one there, or name another folder."
    name, count = inner.most_common(1)[0]
    return f" Its folder '{name}' holds {count}: name that one."


def _kinds() -> str:
    return " ".join(sorted(suffix[1:] for suffix in SUFFIXES))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _decoded(content: bytes, path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError as error:
            raise DataError(f"{path} is not a picture: {_looks_like(content)}. Replace it or take it away.") from error
        except Image.DecompressionBombError as error:
            raise DataError(f"{path} is too large: {_limits()}. Scale it down.") from error
        except _BROKEN as error:
            raise DataError(f"{path} is damaged: {error}. Replace it or take it away.") from error
        check_size(*image.size, path)
        try:
            image.load()
        except _BROKEN as error:
            raise DataError(f"{path} is damaged or cut short: {error}. Replace it or take it away.") from error
    return image


def _looks_like(content: bytes) -> str:
    if not content:
        return "the file is empty"
    head = content[:512]
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return "its content is of no known picture format"
    return "its content is text"


def _limits() -> str:
    return f"at most {LARGEST_SIDE:,} pixels a side and {LARGEST_AREA:,} in all can be read"


def check_size(width: int, height: int, path: Path) -> None:
    """Refuse a picture that is too large or too small, before it is decoded.

    Raises:
        DataError: a side under 16 or over 16,384 pixels, or more than 178,956,970 pixels in all.
    """
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_AREA:
        raise DataError(f"{path} is too large, {width:,} by {height:,} pixels: {_limits()}. Scale it down.")
    if min(width, height) < SMALLEST_SIDE:
        raise DataError(
            f"{path} is too small, {width} by {height} pixels: at least {SMALLEST_SIDE} a side are needed. "
            "Replace it or take it away."
        )


def _upright_rgb(image: Image.Image, path: Path, deep: Deep) -> tuple[Image.Image, bool]:
    """Return the picture in 8-bit RGB as a viewer shows it on white, and whether any of it was transparent."""
    profile = image.info.get("icc_profile")
    image = deep(ImageOps.exif_transpose(image), path)
    if image.mode == "P" or (image.mode in ("RGB", "L", "1") and "transparency" in image.info):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = _in_srgb(image.convert("RGB") if alpha else image, profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return colours, False
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white, True


def eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """Bring 16-bit grey to 8 bits: v / 257 takes 0..65535 to 0..255; any other picture stays as it is.

    Raises:
        DataError: it holds floating-point or 32-bit numbers.
    """
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point numbers, not colours: save it as 8-bit PNG or JPEG.")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    if values.min() < 0 or values.max() > 65_535:
        raise DataError(f"{path} holds 32-bit numbers, not colours: save it as 8-bit PNG or JPEG.")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert from the embedded colour profile; without one, or with one that does not fit, by Pillow's formula."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:
            return image.convert("RGB")
        if converted is not None:
            return converted
    return image.convert("RGB")

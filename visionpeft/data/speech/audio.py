"""Sound as people have it: wav, flac, mp3, ogg, at any rate, with any number of channels; refusing what is none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionpeft.data.reason import reason
from visionpeft.errors import DataError, MissingExtraError, did_you_mean

Audio = NDArray[np.float32]
"""Samples, [n] float32, about -1 to 1."""

RATE = 16_000
"""Samples a second that Whisper hears."""

SUFFIXES = {
    "WAV": (".wav",),
    "WAVEX": (".wav",),
    "RF64": (".wav",),
    "FLAC": (".flac",),
    "MP3": (".mp3",),
    "OGG": (".ogg", ".oga", ".opus"),
    "AIFF": (".aiff", ".aif"),
}
"""What a file is, as libsndfile calls it -> how its name may end."""

NEEDS_CONVERSION = frozenset({".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp", ".mkv", ".mov", ".avi", ".caf"})
SLOWEST, FASTEST, MOST_CHANNELS = 4_000, 384_000, 64
LONGEST = 6 * 3600.0
"""Seconds of a stretch that is read at once."""

_LOUDEST = 100.0
"""Samples beyond this are integers that someone wrote as floating-point numbers."""
_BLOCK = 1 << 20
"""Samples, over all channels, that are read at once: memory follows what a file holds, not what its header says."""
_SLACK = 0.05
"""Seconds by which a stretch may end after the file: what times in tables are rounded by."""
_MOST_CHUNKS = 64
_UNKNOWN = frozenset({0, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, *(0xFFFF_FFFF - less for less in (36, 44, 70, 78))})
"""Lengths that programs write which do not know it yet, as those that write into a pipe."""
_CUT_SHORT = 0.2
"""Seconds by which a file may be shorter than its header says; encoders of MP3 count whole frames."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        kind: a key of ``SUFFIXES``.
        rate: samples a second.
        channels: at least 1.
        frames: samples a channel.
    """

    kind: str
    rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """How long it says it is."""
        return self.frames / self.rate


def read_audio(path: str | Path, *, rate: int = RATE, start: float = 0.0, end: float | None = None) -> Audio:
    """Return a file's sound from ``start`` to ``end``: float32 [samples], one channel, the mean of the file's.

    Args:
        path: a wav, flac, mp3, ogg (Vorbis, Opus) or aiff file.
        rate: samples a second of the result; the file's own are resampled by a polyphase filter.
        start: seconds from the file's beginning.
        end: seconds from the file's beginning, over ``start``; None: to its end.

    Raises:
        DataError: the file is missing, no sound, damaged, cut short, named as what it is not, empty, holds values that
            are no numbers, or ends before ``end``.
        MissingExtraError: soundfile is not installed.
    """
    samples, own = decoded(Path(path), start, end)
    return resampled(samples, own, rate)


def resampled(samples: Audio, own: int, rate: int) -> Audio:
    """Return ``samples`` of ``own`` a second as ``rate`` a second, ceil(n · rate / own) of them."""
    if own == rate:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(own, rate)
    return resample_poly(samples, rate // common, own // common).astype(np.float32)


def audio_seconds(path: str | Path) -> float:
    """Return how long a file says it is.

    Raises:
        DataError: as :func:`read_audio`, as far as the header shows.
    """
    return header_of(Path(path)).seconds


def header_of(path: Path) -> Header:
    """Return what a file says of itself.

    Raises:
        DataError: as :func:`read_audio`, as far as the header shows.
    """
    with _opened(path) as (_, header):
        return header


def sound_digest(path: str | Path, *, start: float = 0.0, end: float | None = None) -> str:
    """Return a hash of a stretch of sound: the same for the same samples in another file or another lossless format.

    Raises:
        DataError: as :func:`read_audio`.
    """
    return digest_of(*decoded(Path(path), start, end))


def digest_of(samples: Audio, rate: int) -> str:
    """Return a hash of ``samples`` [n] in steps of 2⁻¹⁵, and of their rate."""
    steps = np.rint(samples * 32_768).clip(-(2**31), 2**31 - 128).astype("<i4")
    return hashlib.sha256(f"{rate}:".encode() + steps.tobytes()).hexdigest()


def decoded(path: Path, start: float = 0.0, end: float | None = None) -> tuple[Audio, int]:
    """Return (samples [n] of one channel, samples a second) of a stretch at the file's own rate.

    Raises:
        DataError: as :func:`read_audio`.
        MissingExtraError: soundfile is not installed.
    """
    with _opened(path) as (file, header):
        first, wanted = _stretch(path, header, start, end)
        if first:
            file.seek(first)
        samples = _mono(file, header, wanted)
    _check(path, header, samples, wanted, start)
    return samples, header.rate


def _stretch(path: Path, header: Header, start: float, end: float | None) -> tuple[int, int]:
    """First frame and number of frames of a stretch, checked against the header."""
    last = header.seconds if end is None else end
    if not 0 <= start < last < math.inf:
        raise DataError(f"{path}: no sound lies between {start:g} s and {last:g} s; it has {header.seconds:g} s.")
    if last > header.seconds + _SLACK:
        raise DataError(f"{path} has {header.seconds:.2f} s, and {last:.2f} s was named as an end: mend the times.")
    if last - start > LONGEST:
        raise DataError(f"{path} says it has {last - start:,.0f} s: at most {LONGEST:,.0f} s are read at once.")
    first = round(start * header.rate)
    return first, max(1, min(header.frames, round(last * header.rate)) - first)


def _mono(file: Any, header: Header, wanted: int) -> Audio:
    """At most ``wanted`` frames, read block by block: a header that lies costs no memory."""
    block = max(1, _BLOCK // header.channels)
    parts: list[Audio] = []
    while wanted > 0:
        part = file.read(min(block, wanted), dtype="float32", always_2d=True)
        if not len(part):
            break
        parts.append(part[:, 0] if header.channels == 1 else part.mean(axis=1))
        wanted -= len(part)
    return np.ascontiguousarray(np.concatenate(parts), np.float32) if parts else np.zeros(0, np.float32)


def _check(path: Path, header: Header, samples: Audio, wanted: int, start: float) -> None:
    if not len(samples):
        raise DataError(f"{path} holds no sound from {start:g} s on: it is cut short. Copy it again.")
    if wanted - len(samples) > _CUT_SHORT * header.rate:
        says, has = (start + count / header.rate for count in (wanted, len(samples)))
        raise DataError(f"{path} is cut short: it says {says:.2f} s and ends at {has:.2f} s. Copy it again.")
    if not np.isfinite(samples).all():
        raise DataError(f"{path} holds samples that are no numbers (NaN or infinite): write it anew.")
    if float(np.abs(samples).max()) > _LOUDEST:
        raise DataError(f"{path} holds samples up to {np.abs(samples).max():.4g}: expected -1 to 1. Scale it.")


@contextmanager
def _opened(path: Path) -> Generator[tuple[Any, Header]]:
    """The open file with its header, checked; whatever libsndfile finds wrong becomes one line."""
    library = _soundfile(path)
    _check_name(path)
    try:
        with library.SoundFile(str(path)) as file:
            header = Header(file.format, file.samplerate, file.channels, file.frames)
            _check_header(path, header)
            yield file, header
    except (library.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{path} {_what_it_is(path, error)} Replace it or take it away.") from error


@lru_cache(maxsize=1)
def _library() -> Any:
    import soundfile

    return soundfile


def _soundfile(path: Path) -> Any:
    try:
        return _library()
    except (ImportError, OSError) as missing:  # OSError: the wheel without libsndfile
        raise MissingExtraError(f"{path} is sound: pip install 'visionpeft[speech]' to read it.") from missing


def _check_name(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in NEEDS_CONVERSION:
        raise DataError(f"{path} cannot be read: convert it, as by ffmpeg -i {path.name} {path.stem}.flac")
    known = sorted({name for names in SUFFIXES.values() for name in names})
    if suffix not in known:
        raise DataError(f"{path} is not named as sound: {' '.join(known)} can be read.")
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path} is not there.{did_you_mean(path.name, siblings)}")


def _check_header(path: Path, header: Header) -> None:
    names = SUFFIXES.get(header.kind)
    if names is None:
        raise DataError(f"{path} is {header.kind} by its content: convert it to wav or flac.")
    if path.suffix.lower() not in names:
        raise DataError(f"{path} is {header.kind} by its content: name it {path.stem}{names[0]}.")
    if not SLOWEST <= header.rate <= FASTEST:
        raise DataError(f"{path} says {header.rate:,} samples a second: expected {SLOWEST:,} to {FASTEST:,}.")
    if not 1 <= header.channels <= MOST_CHANNELS:
        raise DataError(f"{path} says it has {header.channels} channels: at most {MOST_CHANNELS} are read.")
    if header.frames < 1:
        raise DataError(f"{path} holds no sound: it has no samples.")
    lacking = _lacking(path) if header.kind in ("WAV", "WAVEX") else 0
    if lacking > 0:
        raise DataError(f"{path} is cut short: {lacking:,} bytes that it says it has are missing. Copy it again.")


def _lacking(path: Path) -> int:
    """How many bytes of samples a wav file says it has and has not; libsndfile reads what is there without a word."""
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 12
        for _ in range(_MOST_CHUNKS):
            file.seek(place)
            head = file.read(8)
            length = int.from_bytes(head[4:], "little")
            if len(head) < 8 or head[:4] == b"data":
                return place + 8 + length - size if length not in _UNKNOWN and len(head) == 8 else 0
            place += 8 + length + length % 2
    return 0


def _what_it_is(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror}."
    if not head:
        return "is empty."
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return f"is damaged or no sound: {reason(error)}."
    return "is not sound: its content is text."

"""Windows over sound of any length, so that no word is lost or written twice where two of them meet.

A window is at most 30 s, which is what Whisper hears. It ends at the quietest moment of its last seconds, so that no
word is cut. Two ways of going on:

- ``moved``: the model says when each segment begins and ends; the next window begins where its last finished segment
  ends, as in section 3.8 of Whisper's paper (arXiv:2212.04356). What it had begun to write behind that is heard again.
- ``silences``: the next window begins where this one ends, and all of them may be heard at once. For models that were
  trained without timestamps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from visionpeft.data.speech.audio import RATE, Audio, audio_seconds, read_audio
from visionpeft.data.speech.pieces import quietest
from visionpeft.data.speech.utterances import Timed

LONGEST = 30.0
"""Seconds that the model hears at once."""

TICK = 0.02
"""Seconds from one timestamp of Whisper's to the next."""

_QUIET = {"moved": 3.0, "silences": 12.0}
"""Seconds before a window's latest end in which the quietest moment is looked for."""

_BLOCK = 600.0
"""Seconds of sound that are held at once, of each recording."""

_AROUND = 0.1
"""Seconds by which a timestamp may be off."""

_LEAST = 0.5
"""Seconds by which a window moves at least: a model that writes timestamps at random must not hold it."""

_OVERHANG = 0.05
"""Seconds at the end of a recording that are too short to say anything in."""

_STRETCH = 0.04
"""Seconds whose loudness is compared: two periods of a mains hum."""


class Recording:
    """A sound file that is read block by block, so that memory does not grow with its length.

    Args:
        path: of the file.

    Raises:
        DataError: it is no sound that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = audio_seconds(path)
        self._start, self._block = 0.0, np.zeros(0, np.float32)

    def forget(self) -> None:
        """Let go of the sound that is held."""
        self._start, self._block = 0.0, np.zeros(0, np.float32)

    def part(self, start: float, end: float) -> Audio:
        """Return the sound from ``start`` to ``end`` seconds, at 16 kHz; what lies behind the file's end is left out.

        Raises:
            DataError: the file cannot be read to there.
        """
        held = self._start + len(self._block) / RATE
        if not self._start <= start < held or (end > held and held < self.seconds - _OVERHANG):
            self._start = start
            self._block = read_audio(self.path, start=start, end=min(self.seconds, start + _BLOCK))
        first = round((start - self._start) * RATE)
        return self._block[first : first + round((end - start) * RATE)]


class Sounding(Protocol):
    """Anything that has parts of sound: a `Recording`, or an array of samples in a test."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        ...

    def part(self, start: float, end: float) -> Audio:
        """Return the sound from ``start`` to ``end`` seconds."""
        ...


@dataclass(frozen=True)
class Heard:
    """What a model wrote of one window.

    Attributes:
        ids: the tokens that it wrote, timestamps among them, without what they begin and end with.
        first: the token that means "0.00 s"; the next ones are 0.02 s apart.
        text: the text of tokens that are no timestamps.
        language: Whisper's code of what is spoken; None where that is not known.
    """

    ids: Sequence[int]
    first: int
    text: Callable[[Sequence[int]], str]
    language: str | None = None


@dataclass(frozen=True)
class Reading:
    """What was written of a window, in seconds from its beginning.

    Attributes:
        segments: those that count.
        advance: where the last of them ends, or the window: the next one begins there.
        until: where what is heard again begins; the next window may begin anywhere between.
    """

    segments: tuple[Timed, ...]
    advance: float
    until: float


def read_window(heard: Heard, seconds: float, *, last: bool) -> Reading:
    """Return what was written of a window, and where the next one begins.

    A segment ends at a timestamp. Where the text ends with one, nothing is left to hear in the window. Where the model
    was in the middle of a segment, that is heard again from its beginning, together with what follows; where it only
    began one, what follows is. In the recording's last window what is in the middle is taken as it is.

    Args:
        heard: what the model wrote.
        seconds: of the window.
        last: whether the recording ends with it.
    """
    segments, spoken, start, rest = _segments(heard, seconds)
    begun = len(heard.ids) > 1 and all(token >= heard.first for token in heard.ids[-2:])
    if spoken >= _LEAST and segments and (begun or (rest and not last)):
        return Reading(tuple(segments), spoken, start)
    if rest:
        _add(segments, heard.text(rest), start, seconds, seconds)
    return Reading(tuple(segments), seconds, seconds)


def _segments(heard: Heard, seconds: float) -> tuple[list[Timed], float, float, list[int]]:
    """The segments that the model ended, where the last of them ends, where the next begins, and its tokens."""
    segments: list[Timed] = []
    words: list[int] = []
    start, spoken = 0.0, 0.0
    for token in heard.ids:
        if token < heard.first:
            words.append(token)
            continue
        time = min((token - heard.first) * TICK, seconds)
        if words:
            _add(segments, heard.text(words), start, time, seconds)
            words, spoken = [], max(spoken, time, start)
        start = max(time, spoken)
    return segments, spoken, start, words


def _add(segments: list[Timed], text: str, start: float, end: float, seconds: float) -> None:
    if text.strip():
        begin = min(start, max(seconds - TICK, 0.0))
        segments.append(Timed(begin, max(end, begin + TICK), text.strip()))


class Walk:
    """The windows of one recording, one after the other, and what was heard in them.

    Args:
        sound: the recording.
        by: "moved" or "silences".
        longest: seconds of a window at most.
    """

    def __init__(self, sound: Sounding, by: str = "moved", longest: float = LONGEST) -> None:
        self.sound, self.by, self.longest = sound, by, longest
        self._next = 0.0
        self._waiting = 0
        self._found: dict[float, tuple[Timed, ...]] = {}
        self._languages: Counter[str] = Counter()

    @property
    def done(self) -> bool:
        """Whether all of it was heard."""
        return not self._waiting and self._over

    @property
    def _over(self) -> bool:
        return self._next >= self.sound.seconds - _OVERHANG

    @property
    def place(self) -> float:
        """Seconds from its beginning that need not be heard any more, or are being heard."""
        return min(self._next, self.sound.seconds)

    @property
    def segments(self) -> tuple[Timed, ...]:
        """What was heard, in order, in seconds from the recording's beginning."""
        return tuple(segment for start in sorted(self._found) for segment in self._found[start])

    @property
    def language(self) -> str | None:
        """The language of most windows in which something was said; None where none is known."""
        return next((name for name, _ in self._languages.most_common(1)), None)

    def take(self) -> tuple[float, float] | None:
        """Return the next window (start, end) to hear; None where there is none, or none yet."""
        if self._over or (self.by == "moved" and self._waiting):
            return None
        start, end = self._next, self._end(self._next)
        self._waiting += 1
        self._next = end
        return start, end

    def _end(self, start: float) -> float:
        """Where a window ends: the recording's end if that is near enough, else the quietest moment before it must."""
        latest = start + self.longest
        if latest >= self.sound.seconds - _OVERHANG:
            return self.sound.seconds
        earliest = latest - min(_QUIET[self.by], 0.4 * self.longest)
        return earliest + quietest(self.sound.part(earliest, latest), RATE, 0.0, latest - earliest)

    def give(self, window: tuple[float, float], heard: Heard) -> None:
        """Take what a model wrote of a window."""
        start, end = window
        self._waiting -= 1
        if heard.ids and heard.language is not None:
            self._languages[heard.language] += 1
        if self.by == "silences":
            text = heard.text([token for token in heard.ids if token < heard.first]).strip()
            self._found[start] = (Timed(start, end, text),) if text else ()
            return
        read = read_window(heard, end - start, last=end >= self.sound.seconds - _OVERHANG)
        self._found[start] = tuple(Timed(start + one.start, start + one.end, one.text) for one in read.segments)
        again = read.advance < end - start
        self._next = self._seam(start + read.advance, start + read.until) if again else end

    def _seam(self, spoken: float, begun: float) -> float:
        """The quietest moment where one segment has ended and the next begins; timestamps are not to the point."""
        low, high = spoken - _AROUND, max(spoken, begun) + _AROUND
        return low + quietest(self.sound.part(low, high), RATE, 0.0, high - low)


def steady(sound: Audio) -> bool:
    """Whether sound at 16 kHz is as loud throughout, to 3 dB from 40 ms to 40 ms, as hums, tones and white noise are.

    Speech is not, even in white noise as loud as itself: the loudest of its stretches has 7 times the power of the
    quietest, and more.
    """
    width = round(_STRETCH * RATE)
    power = np.square(sound[: len(sound) // width * width], dtype=np.float64).reshape(-1, width).sum(1)
    return len(power) > 0 and bool(power.max() <= 2 * power.min())

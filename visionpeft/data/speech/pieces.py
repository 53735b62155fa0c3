"""Long recordings in pieces: cut at the quietest moment between two segments, each piece with its own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from visionpeft.data.speech.audio import Audio, decoded, digest_of
from visionpeft.data.speech.utterances import Timed, Utterance

SLACK = 0.1
"""Seconds by which the times of segments may be off: so far beyond a pause the quietest moment is looked for, and so
much may two segments overlap at a cut."""

MARGIN = 0.5
"""Seconds that a piece keeps of the pause before its first word and after its last."""

_FRAME = 0.02
"""Seconds over which loudness is measured."""


@dataclass(frozen=True)
class _Cut:
    """Where one piece ends and the next begins, in seconds of the recording; between them nothing is said."""

    end: float
    start: float


def pieces_of(whole: Utterance, seconds: float, longest: float) -> list[Utterance]:
    """Return ``whole`` as pieces of at most ``longest`` seconds, cut at silences, each with the words of its segments.

    Only times that are known are used: words are never shared out by guessing. As many segments as fit go into a
    piece. What cannot be cut (a segment that is too long, or several that overlap) stays a piece that is too long.

    Args:
        whole: with segments, their times from ``whole.start`` on.
        seconds: of ``whole``.
        longest: of a piece, in seconds.

    Raises:
        DataError: the sound cannot be read.
    """
    sound, rate = decoded(whole.path, whole.start, whole.end)
    groups, cuts = _groups(whole.segments, sound, rate)
    first = max(0.0, whole.segments[0].start - MARGIN)
    last = min(seconds, max(segment.end for segment in whole.segments) + MARGIN)
    starts, ends = [first, *(cut.start for cut in cuts)], [*(cut.end for cut in cuts), last]
    found: list[Utterance] = []
    begun = 0
    for number in range(len(groups)):
        if number + 1 < len(groups) and ends[number + 1] - starts[begun] <= longest:
            continue
        said = [segment for group in groups[begun : number + 1] for segment in group]
        found.append(_piece(whole, starts[begun], ends[number], said, (sound, rate)))
        begun = number + 1
    return found


def _groups(segments: Sequence[Timed], sound: Audio, rate: int) -> tuple[list[list[Timed]], list[_Cut]]:
    """Segments that cannot be parted, in groups, and the cuts between the groups."""
    groups, cuts = [[segments[0]]], list[_Cut]()
    spoken = segments[0].end
    for segment in segments[1:]:
        if segment.start < spoken - SLACK:
            groups[-1].append(segment)
        else:
            quiet = quietest(sound, rate, spoken - SLACK, segment.start + SLACK)
            cuts.append(_Cut(min(quiet, spoken + MARGIN), max(quiet, segment.start - MARGIN)))
            groups.append([segment])
        spoken = max(spoken, segment.end)
    return groups, cuts


def quietest(sound: Audio, rate: int, start: float, end: float) -> float:
    """Return the middle of the quietest 20 ms between ``start`` and ``end``, in seconds; of equals, the middlemost.

    Args:
        sound: [n] samples.
        rate: samples a second.
        start: seconds; before the beginning counts as the beginning.
        end: seconds; after the end counts as the end.
    """
    width = max(1, round(_FRAME * rate))
    low, high = max(0, round(start * rate)), min(len(sound), round(end * rate))
    if high - low <= width:
        return (low + high) / 2 / rate
    total = np.concatenate([[0.0], np.cumsum(np.square(sound[low:high], dtype=np.float64))])
    power = np.maximum(total[width:] - total[:-width], 0.0)
    least = np.flatnonzero(power <= power.min() + 1e-9 * width)
    middle = least[np.argmin(np.abs(least - (len(power) - 1) / 2))]
    return (low + int(middle) + width / 2) / rate


def _piece(whole: Utterance, start: float, end: float, said: Sequence[Timed], heard: tuple[Audio, int]) -> Utterance:
    sound, rate = heard
    part = sound[round(start * rate) : round(end * rate)]
    begin, finish = whole.start + start, whole.start + end
    return replace(
        whole,
        name=f"{whole.name}#{begin:.7g}-{finish:.7g}",
        start=begin,
        end=finish,
        text=" ".join(segment.text for segment in said),
        segments=tuple(_moved(segment, start, end) for segment in said),
        seconds=len(part) / rate,
        digest=digest_of(part, rate),
    )


def _moved(segment: Timed, start: float, end: float) -> Timed:
    """The segment with times from ``start`` on, within the piece: times may be off by ``SLACK``."""
    return Timed(max(segment.start, start) - start, min(segment.end, end) - start, segment.text)

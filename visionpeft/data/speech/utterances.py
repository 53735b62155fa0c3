"""Something said, with its words, and a set of such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visionpeft.data.speech.audio import Audio, audio_seconds, read_audio, sound_digest


@dataclass(frozen=True)
class Timed:
    """Words with their time.

    Attributes:
        start: seconds from the beginning of what they are part of.
        end: seconds, later than ``start``.
        text: the words.
    """

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Utterance:
    """A stretch of a file and what is said in it.

    Attributes:
        name: unique within its set: the file's path from the set's folder, with the stretch where it is a part.
        path: of the file.
        start: where it begins in the file, in seconds.
        end: where it ends, in seconds; None is the file's end.
        text: what is said.
        split: "train", "validation" or "test" where the set says so.
        columns: whatever else is known, by column: speaker, accent, age.
        segments: its parts with their times from ``start`` on, where they are known.
        seconds: how long it is; None where it was not measured yet.
        digest: a hash of its sound, the same for the same sound in another file; "" where it was not computed yet.
    """

    name: str
    path: Path
    start: float
    end: float | None
    text: str
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    segments: tuple[Timed, ...] = ()
    seconds: float | None = None
    digest: str = ""


@dataclass(frozen=True)
class Utterances:
    """A set of utterances.

    Attributes:
        items: in their order.
        faults: what was wrong with those that were left out when this set was read, one sentence each.
    """

    items: tuple[Utterance, ...]
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def audio(self, index: int) -> Audio:
        """Return the sound of an utterance: float32 [samples], 16 kHz, one channel.

        Raises:
            DataError: it cannot be read.
        """
        item = self.items[index]
        return read_audio(item.path, start=item.start, end=item.end)

    def seconds(self, index: int) -> float:
        """Return how long an utterance is.

        Raises:
            DataError: it was not measured yet, and its file cannot be read.
        """
        item = self.items[index]
        if item.seconds is not None:
            return item.seconds
        return (audio_seconds(item.path) if item.end is None else item.end) - item.start

    def digest(self, index: int) -> str:
        """Return a hash of an utterance's sound: the same for the same sound, whatever the file.

        Raises:
            DataError: it was not computed yet, and its file cannot be read.
        """
        item = self.items[index]
        return item.digest or sound_digest(item.path, start=item.start, end=item.end)

    def subset(self, indices: Sequence[int]) -> Utterances:
        """Return the set of the utterances at ``indices``, in that order."""
        return Utterances(tuple(self.items[index] for index in indices))

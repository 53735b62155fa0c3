"""What stands in two splits: a speaker, the same sound, the same sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from visionpeft.data.speech.settings import SpeechSplitConfig
from visionpeft.data.speech.utterances import Utterances
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

Kind = Literal["speaker", "audio", "sentence"]

_SHOWN = 5


@dataclass(frozen=True)
class SpeechLeak:
    """One thing in two splits.

    Attributes:
        kind: "speaker" (a value of the column that splits are made by), "audio" (equal sound) or "sentence".
        value: the speaker or the sentence; the sound's hash.
        splits: the two, the first being the one that is trained on more.
        names: an utterance of each.
        count: how many utterances of the second split it concerns.
    """

    kind: Kind
    value: str
    splits: tuple[str, str]
    names: tuple[str, str]
    count: int

    def __str__(self) -> str:
        """Return the leak in one line, with the files."""
        where = f"in {self.splits[0]} ({self.names[0]}) and in {self.splits[1]} ({self.names[1]})"
        if self.kind == "audio":
            return f"the same sound is {where}."
        what = f"the sentence '{_short(self.value)}'" if self.kind == "sentence" else self.value
        return f"{what} is {where}."


def speech_leaks(parts: Mapping[str, Utterances], by: str | None, progress: Progress = SILENT) -> list[SpeechLeak]:
    """Return what stands in two splits: each speaker, sound and sentence once for each pair of splits.

    Sounds are equal where their samples are, whatever the file (the hash of :func:`audio.sound_digest`); an mp3 and
    the wav that it was made from are not. Sentences are equal in their letters, marks and digits, whatever the case,
    the spaces and the punctuation.

    Args:
        parts: utterances by the names of their splits.
        by: column of the speaker; None: unknown.
        progress: where the bar goes while sound that was not hashed yet is read.

    Raises:
        DataError: sound cannot be read.
    """
    values: dict[Kind, Mapping[str, list[str]]] = {
        "speaker": {split: [item.columns.get(by or "", "") for item in part.items] for split, part in parts.items()},
        "audio": _digests(parts, progress),
        "sentence": {split: [spoken(item.text) for item in part.items] for split, part in parts.items()},
    }
    return [
        leak
        for kind, found in values.items()
        for first, second in combinations(parts, 2)
        for leak in _shared(kind, (first, second), (parts[first], parts[second]), (found[first], found[second]))
    ]


def _shared(
    kind: Kind, splits: tuple[str, str], parts: tuple[Utterances, Utterances], values: tuple[list[str], list[str]]
) -> Iterator[SpeechLeak]:
    """What both have, in the order of the first."""
    (first, second), (here, there) = parts, (_places(values[0]), _places(values[1]))
    for value, places in here.items():
        if value and value in there:
            one, other = first.items[places[0]], second.items[there[value][0]]
            told = one.text if kind == "sentence" else value
            yield SpeechLeak(kind, told, splits, (one.name, other.name), len(there[value]))


def spoken(text: str) -> str:
    """Return ``text`` in small letters without punctuation, words parted by one space; marks on letters stay."""
    kept = (character if unicodedata.category(character)[0] in "LMN" else " " for character in _folded(text))
    return " ".join("".join(kept).split())


def check_leaks(leaks: Sequence[SpeechLeak], config: SpeechSplitConfig, progress: Progress = SILENT) -> None:
    """Tell the leaks, as the settings say for their kind.

    Raises:
        DataError: there are some of a kind that the settings make an error.
    """
    for kind in ("speaker", "audio", "sentence"):
        some = [leak for leak in leaks if leak.kind == kind]
        rule = getattr(config, kind)
        if not some or rule == "off":
            continue
        lines = _sentence_lines(some) if kind == "sentence" else [str(leak) for leak in some[:_SHOWN]]
        lines += [f"… and {len(some) - _SHOWN} more {kind} leaks."] if kind != "sentence" and len(some) > _SHOWN else []
        if rule == "error":
            remedy = f"Figures would be too good: take them out of one split, or set split.{kind} to say."
            raise DataError("\n".join([*lines, remedy]))
        for line in lines:
            progress.say(f"{line} Figures will be too good.")


def _sentence_lines(leaks: Sequence[SpeechLeak]) -> list[str]:
    """One line for each two splits: whole sets are often read from one list of sentences."""
    pairs = dict.fromkeys(leak.splits for leak in leaks)
    lines: list[str] = []
    for first, second in pairs:
        some = [leak for leak in leaks if leak.splits == (first, second)]
        said = (
            f"{sum(leak.count for leak in some)} utterances of {second} say {len(some)} sentences that stand in {first}"
        )
        lines.append(f"{said} too, as '{_short(some[0].value)}' ({some[0].names[0]}, {some[0].names[1]}).")
    return lines


def _digests(parts: Mapping[str, Utterances], progress: Progress) -> dict[str, list[str]]:
    if all(item.digest for part in parts.values() for item in part.items):
        return {split: [item.digest for item in part.items] for split, part in parts.items()}
    digests: dict[str, list[str]] = {split: [] for split in parts}
    with progress.phase("Looking for leaks", sum(map(len, parts.values()))) as bar:
        for split, part in parts.items():
            for index in range(len(part)):
                digests[split].append(part.digest(index))
                bar.advance()
    return digests


def _places(values: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        found.setdefault(value, []).append(index)
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"

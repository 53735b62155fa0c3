"""What stands in two splits: a speaker, the same sound, the same sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from visionpeft.data.speech.settings import SpeechSplitConfig
from visionpeft.data.speech.utterances import Utterances
from visionpeft.errors import DataError
from visionpeft.progress import SILENT, Progress

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

    kind: Literal["speaker", "audio", "sentence"]
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
    digests = _digests(parts, progress)
    kinds: list[tuple[Literal["speaker", "audio", "sentence"], Callable[[str, int], str]]] = [
        ("audio", lambda split, index: digests[split][index]),
        ("sentence", lambda split, index: spoken(parts[split].items[index].text)),
    ]
    if by is not None:
        kinds.insert(0, ("speaker", lambda split, index: parts[split].items[index].columns.get(by, "")))
    found: list[SpeechLeak] = []
    for kind, value in kinds:
        places = {split: _places(len(part), split, value) for split, part in parts.items()}
        for first, second in combinations(parts, 2):
            for same in places[first]:
                if same and same in places[second]:
                    here, there = places[first][same], places[second][same]
                    names = (parts[first].items[here[0]].name, parts[second].items[there[0]].name)
                    said = parts[first].items[here[0]].text if kind == "sentence" else same
                    found.append(SpeechLeak(kind, said, (first, second), names, len(there)))
    return found


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
        lines = [f"  {leak}" for leak in some[:_SHOWN]]
        lines += [f"  … and {len(some) - _SHOWN} more"] if len(some) > _SHOWN else []
        counted = f"{len(some)} {_NOUNS[kind]} in two splits, so that figures would be too good:\n" + "\n".join(lines)
        if rule == "error":
            raise DataError(f"{counted}\nTake them out of one split, or set split.{kind} to say.")
        progress.say(counted)


_NOUNS = {"speaker": "speaker(s) stand", "audio": "sound(s) stand", "sentence": "sentence(s) stand"}


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


def _places(count: int, split: str, value: Callable[[str, int], str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index in range(count):
        found.setdefault(value(split, index), []).append(index)
    return found


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"

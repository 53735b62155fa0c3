"""What is wrong with an utterance: found for all of them, told by file and row, left out only on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from visionpeft.data.ahead import in_batches
from visionpeft.data.speech.audio import audio_seconds, decoded, digest_of
from visionpeft.data.speech.pieces import pieces_of
from visionpeft.data.speech.raw import RawUtterance
from visionpeft.data.speech.settings import SpeechConfig
from visionpeft.data.speech.utterances import Utterance, Utterances
from visionpeft.errors import DataError
from visionpeft.progress import Progress

_SHOWN = 200


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row.

    Attributes:
        where: its table and line.
        kind: "unreadable row", "no text", "twice", "sound", "silent", "too short" or "too long".
        says: the same in words, with the file.
    """

    where: str
    kind: str
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.says}"


@dataclass(frozen=True)
class _Measured:
    """What the sound of a row shows: its length, its digest, whether it is silent; or why it cannot be read."""

    seconds: float = 0.0
    digest: str = ""
    silent: bool = False
    fault: str = ""


def checked_utterances(rows: Sequence[RawUtterance], config: SpeechConfig, progress: Progress) -> Utterances:
    """Return the utterances that can be used, and in ``faults`` what was wrong with the others.

    Args:
        rows: as read.
        config: what is done about what is wrong.
        progress: where lines and the bar go.

    Raises:
        DataError: rows cannot be used and ``config.on_bad`` is "error", or some are too long and ``config.long`` does
            not say what to do with them; all of them are listed.
    """
    found, faults = list[Utterance](), list[Fault]()
    seen: dict[str, str] = {}
    for row, measured in _measured(rows, config, progress):
        if measured.seconds > config.longest and config.long == "cut" and row.segments and not measured.fault:
            whole = Utterance(row.name, row.path, row.start, row.end, row.text, row.split, row.columns, row.segments)
            made = pieces_of(whole, measured.seconds, config.longest)
        else:
            made = [_utterance(row, measured)]
        for item in made:
            fault = _fault(row, item, measured, config, seen)
            if fault is None:
                seen[item.name] = row.where
                found.append(item)
            else:
                faults.append(fault)
    _tell(faults, len(rows), config, progress)
    return Utterances(tuple(found), tuple(str(fault) for fault in faults))


def _measured(
    rows: Sequence[RawUtterance], config: SpeechConfig, progress: Progress
) -> Iterator[tuple[RawUtterance, _Measured]]:
    def measure(number: int) -> _Measured:
        return _measure(rows[number], config.check == "samples")

    with progress.phase("Checking sound", len(rows)) as bar:
        number = 0
        for batch in in_batches(measure, len(rows), 8 * config.workers, config.workers):
            for measured in batch:
                yield rows[number], measured
                number += 1
            bar.advance(len(batch))


def _measure(row: RawUtterance, samples: bool) -> _Measured:
    if row.fault:
        return _Measured()
    try:
        if not samples:
            end = audio_seconds(row.path) if row.end is None else row.end
            return _Measured(end - row.start)
        sound, rate = decoded(row.path, row.start, row.end)
    except DataError as error:
        return _Measured(fault=str(error))
    return _Measured(len(sound) / rate, digest_of(sound, rate), not np.any(sound))


def _utterance(row: RawUtterance, measured: _Measured) -> Utterance:
    text = row.text or " ".join(segment.text for segment in row.segments)
    return Utterance(
        stretch_name(row.name, row.start, row.end), row.path, row.start, row.end, text, row.split, row.columns,
        row.segments, measured.seconds, measured.digest,
    )  # fmt: skip


def stretch_name(name: str, start: float, end: float | None) -> str:
    """Return ``name`` for a whole file, and with the times for a part of it: ``talk.flac#12.3-40``."""
    if not start and end is None:
        return name
    return f"{name}#{start:.7g}-" if end is None else f"{name}#{start:.7g}-{end:.7g}"


def _fault(
    row: RawUtterance, item: Utterance, measured: _Measured, config: SpeechConfig, seen: dict[str, str]
) -> Fault | None:
    """What is wrong with an utterance that ``row`` gave; None where nothing is."""
    kind, says = "", ""
    seconds = item.seconds or 0.0
    if row.fault:
        kind, says = "unreadable row", row.fault
    elif not item.text.strip():
        kind, says = "no text", f"{item.name} has no text: write what is said, or take it away."
    elif item.name in seen:
        kind, says = "twice", f"{item.name} stands in {seen[item.name]} too: keep one of them."
    elif measured.fault:
        kind, says = "sound", measured.fault
    elif measured.silent:
        kind, says = "silent", f"{item.name} is silent from beginning to end, and its text is '{_short(item.text)}'."
    elif seconds < config.shortest:
        kind, says = "too short", f"{item.name} has {seconds:.3f} s: at least {config.shortest:g} s are used."
    elif seconds > config.longest:
        kind, says = "too long", _too_long(row, item, config)
    return Fault(row.where, kind, says) if kind else None


def _too_long(row: RawUtterance, item: Utterance, config: SpeechConfig) -> str:
    has = f"{item.name} has {item.seconds:.1f} s, and {config.longest:g} s are heard at once"
    if not row.segments:
        return f"{has}: when its words are said is not known, so that it cannot be cut. Give segments with times."
    if config.long == "cut":
        return f"{has}: there is no pause between its segments to cut it at."
    return f"{has}: set long to cut, which cuts it between its segments."


def _tell(faults: Sequence[Fault], rows: int, config: SpeechConfig, progress: Progress) -> None:
    refused = [fault for fault in faults if (_rule(fault, config)) == "error"]
    if refused:
        lines = [f"  {fault}" for fault in refused[:_SHOWN]]
        lines += [f"  … and {len(refused) - _SHOWN} more"] if len(refused) > _SHOWN else []
        kinds = Counter(fault.kind for fault in refused)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        listed = "\n".join(lines)
        raise DataError(
            f"{len(refused)} of {rows} rows cannot be used ({counted}):\n{listed}\n"
            "Mend them; or set on_bad (for those that are too long: long) to skip, which leaves them out."
        )
    for fault in faults[:_SHOWN]:
        progress.say(f"{fault} Left out.")
    if faults:
        progress.say(f"{len(faults)} of {rows} rows could not be used and were left out.")


def _rule(fault: Fault, config: SpeechConfig) -> str:
    if fault.kind == "too long" and config.long != "cut":
        return config.long
    return config.on_bad


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"

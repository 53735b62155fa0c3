"""Transcripts as files: plain text, SubRip and WebVTT subtitles, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visionpeft.data.speech.utterances import Timed
from visionpeft.errors import ConfigError, did_you_mean
from visionpeft.evaluation.speech.normalise import LETTERS_ARE_WORDS


@dataclass(frozen=True)
class Transcript:
    """What was said in one file.

    Attributes:
        file: its name.
        segments: in order, in seconds from its beginning.
        seconds: how long it is.
        language: Whisper's code of it; None where it is not known.
        task: "transcribe", or "translate" where the text is English whatever was said.
        about: what wrote it: base, adapters and their weights.
    """

    file: str
    segments: tuple[Timed, ...]
    seconds: float
    language: str | None = None
    task: str = "transcribe"
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def text(self) -> str:
        """All of it in one line."""
        spaced = self.task == "translate" or self.language not in LETTERS_ARE_WORDS
        return (" " if spaced else "").join(segment.text for segment in self.segments)


def as_txt(transcript: Transcript) -> str:
    """Return the text, a line a segment."""
    return "".join(f"{_line(segment.text)}\n" for segment in transcript.segments)


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles."""
    blocks = (
        f"{number}\n{clock(segment.start, ',')} --> {clock(segment.end, ',')}\n{_shown(segment.text)}\n"
        for number, segment in enumerate(transcript.segments, 1)
    )
    return "\n".join(blocks)


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles; what would be markup there is escaped."""
    blocks = (
        f"{clock(segment.start, '.')} --> {clock(segment.end, '.')}\n{_escaped(segment.text)}\n"
        for segment in transcript.segments
    )
    return "\n".join(("WEBVTT\n", *blocks))


def as_json(transcript: Transcript) -> str:
    """Return the transcript with its times as JSON."""
    return json.dumps(json_values(transcript), indent=1, ensure_ascii=False) + "\n"


def json_values(transcript: Transcript) -> dict[str, Any]:
    """Return the transcript as JSON values; times in seconds."""
    return {
        "file": transcript.file,
        "seconds": round(transcript.seconds, 3),
        "language": transcript.language,
        "task": transcript.task,
        **transcript.about,
        "text": transcript.text,
        "segments": [
            {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
            for segment in transcript.segments
        ],
    }


WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt, "json": as_json}
"""Format, which is also the end of its files' names -> the text of a file."""


def check_formats(names: tuple[str, ...]) -> None:
    """Raise ConfigError where a format is none of ``WRITERS``."""
    for name in names:
        if name not in WRITERS:
            raise ConfigError(f"--format '{name}': one of {', '.join(WRITERS)}.{did_you_mean(name, WRITERS)}")


def clock(seconds: float, point: str = ".") -> str:
    """Return "01:02:03.004" for 3723.004 seconds, with ``point`` before the thousandths."""
    whole = round(seconds * 1000)
    minutes, thousandths = divmod(whole, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{thousandths // 1000:02}{point}{thousandths % 1000:03}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _shown(text: str) -> str:
    """One line that no reader takes for the times of another subtitle."""
    return _line(text).replace("-->", "->")


def _escaped(text: str) -> str:
    return _shown(text).replace("&", "&amp;").replace("<", "&lt;")

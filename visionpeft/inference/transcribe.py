"""From sound files to transcripts, with any adapters: text, subtitles, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from visionpeft import safefile
from visionpeft.data.cache import make_folder
from visionpeft.data.speech.audio import SUFFIXES, Audio, audio_seconds
from visionpeft.data.speech.utterances import Timed
from visionpeft.errors import ConfigError, DataError, OutputError, did_you_mean
from visionpeft.inference.subtitles import WRITERS, Transcript, check_formats
from visionpeft.inference.transcribe_windows import LONGEST, Heard, Recording, Sounding, Walk
from visionpeft.progress import SILENT, Progress

Way = Literal["auto", "moved", "silences"]
WAYS = ("auto", "moved", "silences")

_SILENT = 1e-4
"""A window that is nowhere louder holds no speech, and is not given to the model, which would make some up."""


class Ears(Protocol):
    """A speech model in use."""

    @property
    def language(self) -> str | None:
        """Of what it writes, as Whisper's code of it; None where it finds out by itself."""
        ...

    @property
    def task(self) -> str:
        """What it does: "transcribe" or "translate"."""
        ...

    @property
    def timestamps(self) -> bool:
        """Whether it was trained to write when segments begin and end."""
        ...

    @property
    def window(self) -> float:
        """Seconds that it hears at once."""
        ...

    def heard(self, clips: Sequence[Audio], *, timestamps: bool) -> list[Heard]:
        """Return what it writes of each clip of at most ``window`` seconds at 16 kHz."""
        ...


@dataclass(frozen=True)
class Windows:
    """How long sound is taken apart.

    Attributes:
        by: "moved" by the model's timestamps, "silences" for cuts at the quietest moments, "auto": as it was trained.
        longest: seconds of a window at most, up to 30; and no more than the model hears at once.
        batch_size: windows that are heard together: of one recording, or of several where they move.

    Raises:
        ConfigError: a value out of range.
    """

    by: Way = "auto"
    longest: float = LONGEST
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ConfigError(f"--windows '{self.by}': one of {', '.join(WAYS)}.{did_you_mean(self.by, WAYS)}")
        if not 2 <= self.longest <= LONGEST:
            raise ConfigError(f"windows of {self.longest:g} s: expected 2 to {LONGEST:g}, which is what Whisper hears.")
        if self.batch_size < 1:
            raise ConfigError(f"{self.batch_size} windows at a time: expected 1 or more.")

    def way(self, ears: Ears) -> Literal["moved", "silences"]:
        """Return "moved" or "silences"."""
        if self.by == "auto":
            return "moved" if ears.timestamps else "silences"
        return self.by


@dataclass(frozen=True)
class Job:
    """What to transcribe.

    Attributes:
        paths: sound files, and folders of them with all that is inside.
        adapters: native adapter files and their weights; several are blended.
        base: where the base is, if not where the first adapter says.
        output: folder of the transcripts; None writes nothing.
        formats: of the files: "txt", "srt", "vtt", "json".
        language: Whisper's code of what is spoken; None: what the adapters were trained for, else found out.
        task: "transcribe" or "translate"; None: what the adapters were trained for.
        beams: alternatives that are followed while writing; 1 takes the likeliest token each time.
        fallback: write a window anew, by chance, where the text goes round in circles.
        windows: how long sound is taken apart.
    """

    paths: tuple[Path, ...]
    adapters: tuple[tuple[Path, float], ...] = ()
    base: str | None = None
    output: Path | None = None
    formats: tuple[str, ...] = ("txt",)
    language: str | None = None
    task: str | None = None
    beams: int = 1
    fallback: bool = True
    windows: Windows = field(default_factory=Windows)


@dataclass(frozen=True)
class Transcribed:
    """What was said in each file, and what was written.

    Attributes:
        transcripts: in the order of the files.
        written: all files.
        audio_seconds: of sound together.
        wall_seconds: that hearing and writing took; loading is not in it.
    """

    transcripts: tuple[Transcript, ...]
    written: tuple[Path, ...]
    audio_seconds: float
    wall_seconds: float


def transcribe(
    sounds: Sequence[Sounding], ears: Ears, windows: Windows | None = None, *, progress: Progress = SILENT
) -> list[tuple[Timed, ...]]:
    """Return the segments of each sound, in seconds from its beginning.

    Args:
        sounds: of any length.
        ears: the model, with the adapters that it has.
        windows: how long sound is taken apart.
        progress: shows one bar, in seconds of sound.

    Raises:
        DataError: a sound cannot be read.
    """
    found = dict(transcribe_each(sounds, ears, windows, progress=progress))
    return [found[place].segments for place in range(len(sounds))]


def transcribe_each(
    sounds: Sequence[Sounding], ears: Ears, windows: Windows | None = None, *, progress: Progress = SILENT
) -> Iterator[tuple[int, Walk]]:
    """Yield (place in ``sounds``, what was heard) as soon as each is heard to its end; else as `transcribe`."""
    windows = windows or Windows()
    way = windows.way(ears)
    waiting = list(range(len(sounds)))[::-1]
    walks: dict[int, Walk] = {}
    with progress.phase("transcribing", round(sum(sound.seconds for sound in sounds))) as bar:
        shown = heard = 0.0
        while waiting or walks:
            while waiting and len(walks) < windows.batch_size:
                place = waiting.pop()
                walks[place] = Walk(sounds[place], way, min(windows.longest, ears.window))
            _step(list(walks.values()), ears, windows.batch_size, timestamps=way == "moved")
            finished = [place for place, walk in walks.items() if walk.done]
            now = heard + sum(walk.place for walk in walks.values())
            bar.advance(round(now) - round(shown))
            shown = now
            for place in finished:
                walk = walks.pop(place)
                heard += walk.sound.seconds
                yield place, walk


def _step(walks: Sequence[Walk], ears: Ears, most: int, *, timestamps: bool) -> None:
    """Hear the next windows of some recordings together: one of each, then more of each, up to ``most``."""
    batch: list[tuple[Walk, tuple[float, float]]] = []
    grown = True
    while grown and len(batch) < most:
        before = len(batch)
        for walk in walks:
            window = walk.take() if len(batch) < most else None
            if window is not None:
                batch.append((walk, window))
        grown = len(batch) > before
    clips = [walk.sound.part(*window) for walk, window in batch]
    loud = [place for place, clip in enumerate(clips) if np.abs(clip).max(initial=0.0) > _SILENT]
    written = ears.heard([clips[place] for place in loud], timestamps=timestamps) if loud else []
    told = dict(zip(loud, written, strict=True))
    for place, (walk, window) in enumerate(batch):
        walk.give(window, told.get(place, _NOTHING))


def _no_text(ids: Sequence[int]) -> str:
    del ids
    return ""


_NOTHING = Heard((), 0, _no_text)


def listed(paths: Sequence[Path]) -> list[Path]:
    """Return the sound files at these paths, those of folders by name, each once.

    Raises:
        DataError: a path is not there, a folder holds no sound, or a file cannot be read.
    """
    endings = {ending for names in SUFFIXES.values() for ending in names}
    files: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f"{path} is not there.{did_you_mean(path.name, siblings)}")
        found = [path]
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            found = sorted(file for file in inside if file.suffix.lower() in endings)
            if not found:
                raise DataError(f"{path} holds no sound: {' '.join(sorted(endings))} are read.")
        for file in found:
            audio_seconds(file)  # what cannot be read is told before anything else is heard
            files.setdefault(file.resolve(), file)
    return list(files.values())


def output_names(files: Sequence[Path], roots: Sequence[Path]) -> list[Path]:
    """Return where each file's transcripts go, from the output folder on, without an ending; all different.

    What lies in a folder that was named keeps its place in it; files of one name keep their endings.
    """
    folders = [root for root in roots if root.is_dir()]
    inside = [next((file.relative_to(root) for root in folders if file.is_relative_to(root)), None) for file in files]
    names = [name or Path(file.name) for name, file in zip(inside, files, strict=True)]
    plain = Counter(name.with_suffix("") for name in names)
    names = [name if plain[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
    seen: Counter[Path] = Counter()
    different: list[Path] = []
    for name in names:
        seen[name] += 1
        different.append(name if seen[name] == 1 else name.with_name(f"{name.name}.{seen[name]}"))
    return different


def run_transcribe(job: Job, *, progress: Progress = SILENT) -> Transcribed:
    """Transcribe all files of a job, writing each as soon as it is done.

    Raises:
        DataError: there is no sound, or it cannot be read.
        OutputError: a transcript is there already, or cannot be written.
        VisionPeftError: adapter or base cannot be loaded, an option does not fit the model.
    """
    import time

    from visionpeft.inference.transcribe_model import open_ears

    check_formats(job.formats)
    files = listed(job.paths)
    targets = _targets(job, files)
    ears = open_ears(
        job.adapters, job.base, language=job.language, task=job.task, beams=job.beams, fallback=job.fallback,
        progress=progress,
    )  # fmt: skip
    recordings = [Recording(file) for file in files]
    begun, found, written = time.monotonic(), dict[int, Transcript](), list[Path]()
    about: dict[str, Any] = {"base": ears.base_id, "adapters": {str(path): weight for path, weight in job.adapters}}
    for place, walk in transcribe_each(recordings, ears, job.windows, progress=progress):
        recordings[place].forget()
        seconds, language = recordings[place].seconds, ears.language or walk.language
        found[place] = Transcript(str(files[place]), walk.segments, seconds, language, ears.task, about)
        written += [_write(target, found[place]) for target in targets[place]]
    return Transcribed(
        tuple(found[place] for place in range(len(files))),
        tuple(written),
        sum(recording.seconds for recording in recordings),
        time.monotonic() - begun,
    )


def _targets(job: Job, files: Sequence[Path]) -> list[list[Path]]:
    """The files to write, checked before anything is heard."""
    if job.output is None:
        return [[] for _ in files]
    names = output_names(files, job.paths)
    targets = [[job.output / f"{name}.{ending}" for ending in job.formats] for name in names]
    for target in (target for several in targets for target in several):
        if target.exists():
            raise OutputError(f"{target} exists: nothing is written over. Name another folder with --output.")
    return targets


def _write(target: Path, transcript: Transcript) -> Path:
    make_folder(target.parent)
    safefile.write_atomically(target, [WRITERS[target.suffix.removeprefix(".")](transcript).encode()])
    return target

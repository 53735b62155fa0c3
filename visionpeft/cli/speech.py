"""Commands on speech: transcribe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpeft.cli.show import Command, as_json, here, number_of, rows


def transcribe(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Sound files of any length, and folders.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=WEIGHT]", help="An adapter and its weight (default 1); several are blended."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Where the base is, if not where the adapter says.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the transcripts; default: only printed.")] = None,
    format: Annotated[list[str] | None, typer.Option(help="txt, srt, vtt or json; several write several.")] = None,
    language: Annotated[str | None, typer.Option(help="en, de, mr, …; default: as the adapter was trained.")] = None,
    task: Annotated[str | None, typer.Option(help="transcribe, or translate into English.")] = None,
    windows: Annotated[
        str, typer.Option(help="moved by the model's timestamps, cut at silences, or auto: as it was trained.")
    ] = "auto",
    longest: Annotated[float, typer.Option(min=2, max=30, help="Seconds of a window at most.")] = 30.0,
    batch: Annotated[int, typer.Option(min=1, help="Windows at a time.")] = 8,
    beams: Annotated[int, typer.Option(min=1, help="Alternatives that are followed while writing.")] = 1,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="Write anew, by chance, what goes round in circles.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Write down what is said, with the times, by a Whisper and any adapters on it."""
    from visionpeft.inference.subtitles import json_values
    from visionpeft.inference.transcribe import Job, Windows, run_transcribe
    from visionpeft.progress import TerminalProgress

    job = Job(
        tuple(paths), tuple(weighted(text) for text in adapter or ()), base, output, tuple(format or ("txt",)),
        language, task, beams, fallback, Windows(windows, longest, batch),  # pyright: ignore[reportArgumentType] - it checks
    )  # fmt: skip
    done = run_transcribe(job, progress=TerminalProgress())
    if json:
        as_json({"transcripts": [json_values(one) for one in done.transcripts], "written": done.written})
        return
    if output is None:
        for one in done.transcripts:
            typer.echo(f"{one.file}\n{one.text}\n" if len(done.transcripts) > 1 else one.text)
        return
    factor = done.wall_seconds / done.audio_seconds if done.audio_seconds else 0.0
    rows({"written": here(output), "files": len(done.transcripts), "real-time factor": f"{factor:.3f}"})


def weighted(text: str) -> tuple[Path, float]:
    """``"a.safetensors=0.5"`` as a path and a weight; 1 where none is given.

    Raises:
        ConfigError: what follows the ``=`` is no finite number.
    """
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    return Path(path), number_of(weight, text, path)


COMMANDS = (
    Command(
        "transcribe",
        transcribe,
        "Write down what is said in sound files.",
        "visionpeft transcribe talks/ --adapter runs/ward/adapter.safetensors --output texts --format srt",
    ),
)

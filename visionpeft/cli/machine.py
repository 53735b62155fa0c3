"""Commands about this machine: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpeft.cli.show import Command, as_json


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs will be written, for the free disk space.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Say what this machine can do: devices, precision, attention that really runs, memory, and what would fail."""
    from visionpeft.doctor import diagnose, lines

    diagnosis = diagnose(folder)
    if json:
        as_json(diagnosis)
    else:
        typer.echo("\n".join(lines(diagnosis)))
    if any(problem.serious for problem in diagnosis.problems):
        raise typer.Exit(1)


COMMANDS = (Command("doctor", doctor, "Say what this machine can do and what would fail.", "visionpeft doctor"),)

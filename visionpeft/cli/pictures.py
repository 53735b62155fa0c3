"""Commands that make pictures: generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpeft.cli.show import Command, as_json, here, rows


def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="What is to be seen; several make rows of the grid.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=WEIGHT,…]", help="An adapter and its weights (default 1); several make columns."),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Embedded base, hub id, diffusers folder or .safetensors checkpoint.")
    ] = "visionpeft/emoji-sd",
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    negative: Annotated[str, typer.Option(help="What is not to be seen.")] = "",
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Seeds, one picture each; default 0.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 30,
    guidance: Annotated[float, typer.Option(min=1, help="Classifier-free guidance scale; 1 is none.")] = 4.0,
    sampler: Annotated[str, typer.Option(help="ddim, euler, euler_a, heun, dpm++2m, unipc, …")] = "ddim",
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the base's own.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; default: the base's own.")] = None,
    again: Annotated[Path | None, typer.Option(help="A PNG of this program: make that picture once more.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures painted together.")] = 4,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Paint pictures with any number of adapters; each PNG holds all that is needed to make it again."""
    from visionpeft.errors import ConfigError

    if bool(prompt) == (again is not None):
        raise ConfigError("give either --prompt (once or more) or --again PICTURE.")
    as_json({})
    rows({"": here(output)})


COMMANDS = (
    Command(
        "generate",
        generate,
        "Paint pictures from prompts and adapters.",
        'visionpeft generate --prompt "a photo of sks robot" --adapter robot.safetensors=0.5,1 --seed 0 --seed 1',
    ),
)

"""Commands that make pictures: generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionpeft.cli.show import Command, as_json, here, inline, number_of, rows


def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="What is to be seen; several make rows of the grid.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=WEIGHT,…]", help="An adapter and its weights (default 1); several make columns."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Hub id, diffusers folder or .safetensors checkpoint; default: the embedded base."),
    ] = None,
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
    from visionpeft.inference.paint import Job, run_again, run_generate
    from visionpeft.progress import TerminalProgress

    chosen = [weights_of(text) for text in adapter or ()]
    if bool(prompt) == (again is not None):
        raise ConfigError("give either --prompt (once or more) or --again PICTURE.")
    if again is not None:
        made = run_again(again, output, [path for path, _ in chosen], base, progress=TerminalProgress())
        answer = {"picture": here(made.picture), "difference": made.difference}
    else:
        job = Job(
            tuple(prompt or ()), output, base or Job.base, tuple(chosen), tuple(seed or (0,)),
            negative, steps, guidance, sampler, width, height, batch_size,
        )  # fmt: skip
        painted = run_generate(job, progress=TerminalProgress())
        sheet = {"grid": here(painted.grid)} if painted.grid else {}
        answer = {"pictures": [here(path) for path in painted.pictures], **sheet}
    if json:
        as_json(answer)
    else:
        rows({name: inline(value) for name, value in answer.items()})


def weights_of(text: str) -> tuple[Path, tuple[float, ...]]:
    """``"a.safetensors=0.5,1"`` as a path and its weights; 1 where none is given.

    Raises:
        ConfigError: what follows the ``=`` are no finite numbers.
    """
    path, equals, numbers = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), (1.0,)
    return Path(path), tuple(number_of(number, text, path) for number in numbers.split(","))


COMMANDS = (
    Command(
        "generate",
        generate,
        "Paint pictures from prompts and adapters.",
        'visionpeft generate --prompt "a photo of sks robot" --adapter robot.safetensors=0.5,1 --seed 0 --seed 1',
    ),
)

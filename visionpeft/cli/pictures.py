"""Commands that make pictures: generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visionpeft.cli.show import Command, as_json, here, inline, number_of, rows
from visionpeft.errors import ConfigError

if TYPE_CHECKING:
    from visionpeft.inference.schedule import PartWeights, StepWeight
    from visionpeft.inference.sweep import Axis


def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="What is to be seen; several make rows of the grid.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[=WEIGHT,…]",
            help="An adapter and its weights (default 1); several make columns. A weight may change over the steps,"
            ' "0@0 -> 0.8@0.4", and differ by part, "unet:0.8,unet.up_blocks:0@0 -> 1@1,*:0".',
        ),
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
    compose: Annotated[
        str,
        typer.Option(help="Several adapters: sum (at once), switch (taking turns) or composite (mean of predictions)."),
    ] = "sum",
    switch_every: Annotated[int, typer.Option(min=1, help="Steps of a turn, with --compose switch.")] = 5,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PICTURE", help="Where an adapter acts: a mask, white yes, black no."),
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=VALUE,…",
            help="What varies across a sheet: seed, steps, guidance, sampler, compose, switch_every,"
            " weight[:NAME[:PART]] or block[:NAME].",
        ),
    ] = None,
    y: Annotated[str | None, typer.Option(metavar="KIND=VALUE,…", help="What varies down the sheet.")] = None,
    z: Annotated[str | None, typer.Option(metavar="KIND=VALUE,…", help="What varies from sheet to sheet.")] = None,
    again: Annotated[Path | None, typer.Option(help="A PNG of this program: make that picture once more.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures painted together.")] = 4,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Paint pictures with any number of adapters; each PNG holds all that is needed to make it again."""
    from visionpeft.inference.paint import Job, run_again, run_generate
    from visionpeft.progress import TerminalProgress

    chosen = [weights_of(text) for text in adapter or ()]
    if bool(prompt) == (again is not None):
        raise ConfigError("give either --prompt (once or more) or --again PICTURE.")
    if again is not None:
        if others := [text for text in (*(region or ()), x, y, z, compose if compose != "sum" else None) if text]:
            raise ConfigError(f"--again paints what the picture's recipe says: leave '{others[0]}' out.")
        made = run_again(again, output, [path for path, _ in chosen], base, progress=TerminalProgress())
        answer = {"picture": here(made.picture), "difference": made.difference}
    else:
        job = Job(
            tuple(prompt or ()), output, base or Job.base, tuple(chosen), tuple(seed or (0,)),
            negative, steps, guidance, sampler, width, height, batch_size,
            compose, switch_every, tuple(map(region_of, region or ())), axes_of(x, y, z),
        )  # fmt: skip
        painted = run_generate(job, progress=TerminalProgress())
        sheet = {"grid": here(painted.grid)} if painted.grid else {}
        answer = {"pictures": [here(path) for path in painted.pictures], **sheet}
    if json:
        as_json(answer)
    else:
        rows({name: inline(value) for name, value in answer.items()})


def weights_of(text: str) -> tuple[Path, tuple[PartWeights, ...]]:
    """Read an adapter's path and its weights; 1 where none is given.

    ``a.safetensors=0.5,1`` are two weights, ``=0@0 -> 0.8@0.4`` is one that changes over the steps, and
    ``=unet:0.8,text_encoder:0`` is one with a value for each part.

    Raises:
        ConfigError: what follows the ``=`` is no weight.
    """
    path, equals, weights = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), (1.0,)
    values = weights.split(",")
    if ":" not in weights:
        return Path(path), tuple(_number_or_schedule(value, text, path) for value in values)
    table: dict[str, StepWeight] = {}
    for value in values:
        part, _, weight = value.rpartition(":")
        if not part.strip() or part.strip() in table:
            raise ConfigError(f"'{text}': '{value}' should be a part of the model, once, and its weight: unet:0.7.")
        table[part.strip()] = _number_or_schedule(weight, text, path)
    return Path(path), (table,)


def _number_or_schedule(weight: str, whole: str, path: str) -> StepWeight:
    from visionpeft.inference.schedule import AT, schedule_of

    return schedule_of(weight) if AT in weight else number_of(weight, whole, path)


def region_of(text: str) -> tuple[str, Path]:
    """``robot=mask.png`` as an adapter's name and the path of its mask.

    Raises:
        ConfigError: there is no ``=``.
    """
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise ConfigError(f"--region '{text}' should be an adapter's name and a picture: robot=left.png.")
    return name, Path(path)


def axes_of(*texts: str | None) -> tuple[Axis, ...]:
    """The axes of a sheet, X first.

    Raises:
        ConfigError: one cannot be read, or one is left out before another.
    """
    from visionpeft.inference.sweep import axis_of

    given = [text for text in texts if text is not None]
    if list(texts[: len(given)]) != given:
        raise ConfigError("--y needs --x, and --z needs both.")
    return tuple(map(axis_of, given))


COMMANDS = (
    Command(
        "generate",
        generate,
        "Paint pictures from prompts and adapters.",
        'visionpeft generate --prompt "a photo of sks robot" --adapter robot.safetensors=0.5,1 --seed 0 --seed 1',
    ),
)

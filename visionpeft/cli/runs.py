"""Commands that make a run: demo, train, validate, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionpeft.cli.show import Command, as_json, here, rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from visionpeft.config import RunConfig

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as those in configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings laid over the file's.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def demo(
    what: Annotated[str, typer.Argument(help="dreambooth, classify, detect or transcribe.")] = "dreambooth",
    output: Annotated[Path, typer.Option(help="Where the run is written; it must not exist yet.")] = Path("demo"),
    short: Annotated[bool, typer.Option("--short", help="A few steps only, to see that everything works.")] = False,
    json: Json = False,
) -> None:
    """Teach an embedded model something it has never seen, without a network, and show the report.

    dreambooth: a subject, from five pictures. classify: which of five subjects is on a picture. detect: where they are.
    transcribe: how a speaker says digits.
    """
    from visionpeft.demo import demo_named
    from visionpeft.progress import TerminalProgress

    result = demo_named(what)(output, short=short, progress=TerminalProgress())
    _tell(result, json)


def train(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Train an adapter as the settings say; the run's folder holds adapter, exports, pictures and report."""
    from visionpeft.compute.devices import first_process
    from visionpeft.config import load_config
    from visionpeft.progress import SILENT, TerminalProgress
    from visionpeft.run import train as run

    settings = load_config(config, overrides or ())
    result = run(settings, progress=TerminalProgress() if first_process() else SILENT)
    _tell(result, json)


def train_and_tell(settings: RunConfig, *, json: bool = False) -> None:
    """Train, and say where the run left its work; with several processes only the first one speaks."""
    from visionpeft.compute.devices import first_process
    from visionpeft.progress import SILENT, TerminalProgress
    from visionpeft.run import train as run

    result = run(settings, progress=TerminalProgress() if first_process() else SILENT)
    if result is not None:
        _tell(result, json)


def validate(config: Config, overrides: Overrides = None, json: Json = False) -> None:
    """Check a settings file and print it in full, defaults included; nothing is trained."""
    from visionpeft.config import dump, load_config

    settings = load_config(config, overrides or ())
    if json:
        as_json(settings)
    else:
        typer.echo(dump(settings), nl=False)


def schema(task: Annotated[str, typer.Argument(help="Which task's settings.")] = "dreambooth") -> None:
    """Print the JSON schema of the settings, for editors that complete and check YAML."""
    from visionpeft.config import TASKS
    from visionpeft.errors import ConfigError, did_you_mean

    if task not in TASKS:
        raise ConfigError(f"'{task}' is no task: one of {', '.join(TASKS)}.{did_you_mean(task, TASKS)}")
    as_json(TASKS[task].model_json_schema())


def _tell(result: Any, json: bool) -> None:
    """Say where a run left its work, then its figures; nothing on processes other than the first of several."""
    if result is None:
        return
    if json:
        as_json(result)
        return
    paths: dict[str, Any] = {}
    for name, value in vars(result).items():
        if isinstance(value, Path):
            paths[name] = here(value)
        elif name == "exports":
            paths |= {f"for {kind}": here(path) for kind, path in value.items()}
    rows(paths)
    figures: Mapping[str, float] = result.metrics
    if figures:
        typer.echo()
        rows({name: f"{value:.3f}" for name, value in figures.items()})


COMMANDS = (
    Command("demo", demo, "Teach an embedded model something new, without a network.", "visionpeft demo classify"),
    Command(
        "train",
        train,
        "Train an adapter as a settings file says.",
        "visionpeft train configs/dreambooth_demo.yaml train.steps=200 output=runs/mine",
    ),
    Command(
        "validate",
        validate,
        "Check a settings file and print it in full.",
        "visionpeft validate configs/dreambooth_demo.yaml adapter.rank=8",
    ),
    Command("schema", schema, "Print the JSON schema of the settings.", "visionpeft schema > visionpeft.schema.json"),
)

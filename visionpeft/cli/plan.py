"""The command that says before a run whether it fits, and how: plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from visionpeft.cli.runs import Config, Json, Overrides
from visionpeft.cli.show import Command, as_json, rows

if TYPE_CHECKING:
    from visionpeft.delivery.plan import Candidate, Plan


def plan(
    config: Config,
    overrides: Overrides = None,
    vram: Annotated[
        str | None, typer.Option(help="Memory of the GPU that the run may take: 8GB, 7.5GiB, bytes.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Which GPU, as in 'RTX 3060'; cpu is this CPU. Default: the one that is here.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure anew what this machine's device reaches.")
    ] = False,
    json: Json = False,
) -> None:
    """Predict memory and time of a step from shapes alone, and choose the fastest settings that fit.

    No weights are read and no GPU is needed: where none is here, times are reckoned from the GPU's published facts.
    """
    from visionpeft.config import load_config
    from visionpeft.delivery.machine import machine_for
    from visionpeft.delivery.plan import make_plan
    from visionpeft.progress import TerminalProgress

    settings, progress = load_config(config, overrides or ()), TerminalProgress()
    found = make_plan(settings, machine_for(vram, gpu, measure=measure, progress=progress), progress)
    if json:
        as_json({**vars(found), "settings": found.settings, "verdict": found.verdict})
    else:
        _tell(found)
    if found.chosen is None:
        raise typer.Exit(1)


def _tell(found: Plan) -> None:
    """The plan for people: a table of the best, the phases of the chosen one, and lines to paste."""
    from visionpeft.compute.memory import amount
    from visionpeft.delivery.plan import phases, shown_seconds

    source = "as measured on this machine" if found.measured else "reckoned from its published facts"
    limit = "without a limit" if found.memory is None else f"within {amount(found.memory)}"
    typer.echo(f"{found.device}, {limit}; times {source}.\n")
    best = [*([found.chosen] if found.chosen else []), *found.others]
    typer.echo("\n".join(table(best)))
    shown = (found.chosen or found.smallest).prediction
    typer.echo()
    rows({
        "frozen weights": amount(shown.weights),
        "trained weights and optimizer": amount(shown.state),
        "kept for the backward pass": amount(shown.kept),
        "passing, at most": amount(shown.passing),
        **dict(phases(shown)),
        "outside of torch": amount(shown.context),
        **({"pinned main memory": amount(shown.main_memory)} if shown.main_memory else {}),
        **{f"time: {kind}": shown_seconds(spent) for kind, spent in shown.times.items()},
    })  # fmt: skip
    for note in found.notes:
        typer.echo(f"\nAssumed: {note}")
    typer.echo(f"\n{found.verdict}")
    for line in found.settings:
        typer.echo(line)


def table(candidates: list[Candidate]) -> list[str]:
    """Return candidates as lines: what they need, a step's time, and their settings."""
    from visionpeft.compute.memory import amount
    from visionpeft.delivery.plan import shown_seconds, words

    lines = [f"{'needs':>10}  {'a step':>8}  {'fits':<4}  settings"]
    for one in candidates:
        fits = "yes" if one.fits else "no"
        step = shown_seconds(one.prediction.seconds)
        lines.append(f"{amount(one.needs):>10}  {step:>8}  {fits:<4}  {words(one.changes)}")
    return lines


COMMANDS = (
    Command(
        "plan",
        plan,
        "Say whether a run fits a GPU, and choose the fastest settings that do.",
        "visionpeft plan configs/dreambooth_sdxl.yaml --vram 8GB --gpu 'RTX 4060'",
    ),
)
